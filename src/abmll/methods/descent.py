"""Plain gradient descent on an adapter, as a function of its tensors: a later gradient can run through the steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.common.errors import TrainingError
from abmll.language.adapter import Adapter
from abmll.methods.optimizer import total_norm

MEANS, SCALES = ("mean_A", "mean_B"), ("scale_A", "scale_B")


@dataclass(frozen=True)
class Descent:
    """Steps of  phi - rate * gradient,  a rate for either kind of factor; ``scale_rate`` None: means alone learn."""

    mean_rate: float
    scale_rate: float | None
    max_norm: float  # to which a step's gradient is clipped; 0: not at all

    def learned(self, adapter: Adapter) -> dict[str, Tensor]:
        """The tensors that learn, by name."""
        kinds = MEANS if self.scale_rate is None else MEANS + SCALES
        return {name: tensor for name, tensor in adapter.named_tensors() if name.endswith(kinds)}

    def gradients(self, loss: Tensor, adapter: Adapter, create_graph: bool = False) -> dict[str, Tensor]:
        """d loss / d tensor of those that learn; with ``create_graph`` functions that can be differentiated again.

        Raises ``TrainingError`` where a tensor that should learn takes no part in the loss.
        """
        learned = self.learned(adapter)
        found = torch.autograd.grad(loss, list(learned.values()), create_graph=create_graph, allow_unused=True)
        gradients = {}
        for name, gradient in zip(learned, found, strict=True):
            if gradient is None:
                raise TrainingError(f"{name} has no gradient: it takes no part in the loss")
            gradients[name] = gradient
        return gradients

    def moved(self, adapter: Adapter, gradients: Mapping[str, Tensor], rate: float) -> Adapter:
        """A new adapter, one step on at ``rate`` times the rates; tensors that do not learn are shared."""
        factor, stacks = self._clipping(gradients), dict(adapter.stacks)
        for name, tensor in self.learned(adapter).items():
            shape, field = name.split(".")
            own = self.mean_rate if field in MEANS else self.scale_rate or 0.0
            step = gradients[name] if factor is None else factor * gradients[name]
            stacks[shape] = stacks[shape]._replace(**{field: torch.sub(tensor, step, alpha=rate * own)})
        return Adapter(stacks, adapter.layers)

    def _clipping(self, gradients: Mapping[str, Tensor]) -> Tensor | None:
        """What a gradient is multiplied by to be no longer than ``max_norm``; part of the graph where it has one."""
        if not self.max_norm:
            return None
        whole = total_norm({name: torch.linalg.vector_norm(one) for name, one in gradients.items()})
        return (self.max_norm / whole).clamp(max=1.0)
