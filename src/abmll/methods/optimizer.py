"""AdamW over an adapter's stacked tensors, with a learning rate of its own for the standard deviations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from abmll.common.errors import CheckpointError, TrainingError
from abmll.language.adapter import Adapter

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
FUSED_DEVICES = ("cpu", "cuda")  # elsewhere torch decides


class AdapterOptimizer:
    """torch's AdamW on the tensors of ``adapter`` that require a gradient.

    It is fused where torch offers that: one pass over the moments (a fifth of the default's time on a CPU), and on a
    GPU nothing of a step waits for the device.
    """

    def __init__(self, adapter: Adapter, learning_rate: float, scale_learning_rate: float, weight_decay: float) -> None:
        groups = [(adapter.mean_tensors(), learning_rate), (adapter.scale_tensors(), scale_learning_rate)]
        self.named = {name: tensor for name, tensor in adapter.named_tensors() if tensor.requires_grad}
        self.fused = all(tensor.device.type in FUSED_DEVICES for tensor in self.named.values())
        self.adamw = torch.optim.AdamW(
            [
                {"params": trained, "lr": rate, "base_lr": rate}
                for tensors, rate in groups
                if (trained := [tensor for tensor in tensors if tensor.requires_grad])
            ],
            weight_decay=weight_decay,
            fused=True if self.fused else None,
        )

    def step(self, rate: float, max_norm: float) -> dict[str, Tensor]:
        """One step down the gradient that the tensors hold, as ``follow``."""
        return self.follow(self.taken(), rate, max_norm)

    def taken(self) -> dict[str, Tensor]:
        """The gradient that the tensors hold, by name, which is taken from them.

        Raises ``TrainingError`` where a tensor that should learn has none.
        """
        gradients = {}
        for name, tensor in self.named.items():
            if tensor.grad is None:
                raise TrainingError(f"{name} has no gradient: it takes no part in the loss")
            gradients[name], tensor.grad = tensor.grad, None
        return gradients

    def follow(self, gradients: Mapping[str, Tensor], rate: float, max_norm: float) -> dict[str, Tensor]:
        """One step at ``rate`` times the learning rates, the gradient clipped in place to ``max_norm`` (0: not at all).

        Returns the norm of each tensor's gradient before clipping, fp64 scalars on their device: whether they are
        finite is for the caller to see once it reads them.
        """
        norms = gradient_norms(gradients)
        if max_norm > 0:
            factor = (max_norm / total_norm(norms)).clamp(max=1.0)
            torch.ops.aten._foreach_mul_(list(gradients.values()), factor)
        for name, tensor in self.named.items():
            tensor.grad = gradients[name]
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.adamw.step()
        self.adamw.zero_grad()
        return norms

    def tensors(self) -> dict[str, Tensor]:
        """The moments under names such as ``576x192.mean_A.exp_avg``; empty before the first step."""
        return {
            f"{name}.{moment}": self.adamw.state[tensor][moment]
            for name, tensor in self.named.items()
            if tensor in self.adamw.state
            for moment in MOMENTS
        }

    def load_tensors(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Restore ``tensors()``. Raises ``CheckpointError`` where a moment is missing, is of another shape
        or type or not finite, and where there is one of another tensor."""
        if tensors:
            self._refuse_damaged(tensors, where)
        self.put_back(tensors)

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Have the moments that ``tensors()`` once gave; what else is among ``tensors`` is left alone."""
        self.adamw.state.clear()
        for name, tensor in self.named.items():
            for moment in MOMENTS:
                if f"{name}.{moment}" in tensors:
                    on_host = moment == "step" and not self.fused  # where torch looks for it
                    device = "cpu" if on_host else tensor.device
                    self.adamw.state[tensor][moment] = tensors[f"{name}.{moment}"].to(device, copy=True)

    def _refuse_damaged(self, tensors: Mapping[str, Tensor], where: str) -> None:
        wanted = {f"{name}.{moment}" for name in self.named for moment in MOMENTS}
        for key in sorted(wanted ^ tensors.keys()):
            side = "is missing" if key in wanted else "is unknown"
            raise CheckpointError(f"{where}: {key} {side}; it belongs to another model or method")
        for name, tensor in self.named.items():
            for moment in MOMENTS:
                saved, shape = tensors[f"{name}.{moment}"], () if moment == "step" else tensor.shape
                if saved.shape != shape or not saved.is_floating_point() or not bool(torch.isfinite(saved).all()):
                    raise CheckpointError(f"{where}: {name}.{moment} is damaged, or of another model")


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norm of each gradient, fp64 scalars outside the graph."""
    norms = torch.ops.aten._foreach_norm([one.detach() for one in gradients.values()], 2.0, dtype=torch.float64)
    return dict(zip(gradients, norms, strict=True))


def total_norm(norms: Mapping[str, Tensor]) -> Tensor:
    """The norm of a whole gradient from those of its tensors, a scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(list(norms.values())))
