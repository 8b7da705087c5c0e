"""An adapter: the Gaussian factors of every adapted layer, stacked by shape.

Layers of one shape share four tensors with a leading layer axis, so that the divergence, the prior and the optimizer
work on a handful of tensors whatever the model's depth. On disk each layer has its own tensors under its own name.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from abmll.common.errors import CheckpointError
from abmll.posterior import Factors, Space


class Adapter:
    """Factors by shape (``"576x192"``: d_out x d_in), and the names of the layers in each."""

    def __init__(self, stacks: Mapping[str, Factors], layers: Mapping[str, Sequence[str]]) -> None:
        self.stacks = dict(stacks)
        self.layers = {shape: tuple(names) for shape, names in layers.items()}

    @classmethod
    def create(cls, shapes: Mapping[str, tuple[int, int]], r: int, space: Space, seed: int) -> "Adapter":
        """A fresh adapter for layers ``name -> (d_out, d_in)``; random factors A from ``seed``, B zero."""
        layers: dict[str, list[str]] = {}
        for name, (d_out, d_in) in shapes.items():
            layers.setdefault(f"{d_out}x{d_in}", []).append(name)
        generator = torch.Generator().manual_seed(seed)
        stacks = {
            shape: space.init(len(names), *shapes[names[0]], r, generator)  # the sizes are d_out and d_in
            for shape, names in layers.items()
        }
        return cls(stacks, layers)

    def clone(self) -> "Adapter":
        """A detached copy with its own memory."""
        return Adapter({shape: factors.clone_detached() for shape, factors in self.stacks.items()}, self.layers)

    def to(self, device: torch.device) -> "Adapter":
        """The same adapter with its tensors on ``device``."""
        moved = {shape: Factors(*(tensor.to(device) for tensor in factors)) for shape, factors in self.stacks.items()}
        return Adapter(moved, self.layers)

    def copy_(self, other: "Adapter") -> None:
        """Overwrite this adapter's values with ``other``'s, keeping the memory (and the optimizer's hold on it)."""
        for shape, factors in self.stacks.items():
            factors.copy_(other.stacks[shape])

    def requires_grad_(self, wanted: bool = True) -> "Adapter":
        """Switch the gradient of all tensors on or off."""
        for factors in self.stacks.values():
            factors.requires_grad_(wanted)
        return self

    def by_layer(self) -> dict[str, Factors]:
        """Views of each layer's factors, by layer name; gradients reach the stacks."""
        return {
            name: layer
            for shape, factors in self.stacks.items()
            for name, layer in zip(self.layers[shape], factors.unbind(), strict=True)
        }

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The stacked tensors with their names, ``"576x192.mean_A"`` and so on, always in the same order."""
        for shape, factors in self.stacks.items():
            for field, tensor in zip(factors._fields, factors, strict=True):
                yield f"{shape}.{field}", tensor

    def mean_tensors(self) -> list[Tensor]:
        """The stacked factors of the means."""
        return [tensor for factors in self.stacks.values() for tensor in (factors.mean_A, factors.mean_B)]

    def scale_tensors(self) -> list[Tensor]:
        """The stacked factors of the standard deviations."""
        return [tensor for factors in self.stacks.values() for tensor in (factors.scale_A, factors.scale_B)]

    def digest(self) -> str:
        """A hash of its values."""
        digest = hashlib.sha256()
        for _, tensor in self.named_tensors():
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """One tensor a layer and factor, ``"model.layers.0.self_attn.q_proj.mean_A"``, on the CPU."""
        return {name: tensor.cpu().contiguous() for name, tensor in self._layer_tensors().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], where: str) -> None:
        """Overwrite the values from ``state_dict``'s form. Raises ``CheckpointError`` on any other name, shape
        or type, and for numbers that are not finite."""
        own = self._layer_tensors()
        for name in sorted(own.keys() ^ state.keys()):
            side = "lacks" if name in own else "has the unknown"
            raise CheckpointError(f"{where}: {side} tensor {name}; it belongs to another model or adapter setting")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise CheckpointError(
                    f"{where}: {name} has shape {tuple(state[name].shape)}, this adapter needs {tuple(tensor.shape)}; "
                    "it was saved with another rank or model"
                )
            if state[name].dtype != tensor.dtype:
                raise CheckpointError(
                    f"{where}: {name} is {state[name].dtype}, not {tensor.dtype}; the file is damaged"
                )
            if not bool(torch.isfinite(state[name]).all()):
                raise CheckpointError(f"{where}: {name} holds values that are not finite numbers; the file is damaged")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def _layer_tensors(self) -> dict[str, Tensor]:
        """Views of every layer's tensors under their names on disk, outside the gradient graph."""
        layers = self.by_layer().items()
        return {f"{name}.{field}": tensor for name, layer in layers for field, tensor in layer._asdict().items()}
