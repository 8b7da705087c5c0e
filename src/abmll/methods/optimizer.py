"""AdamW over an adapter's stacked tensors, with a learning rate of its own for the standard deviations."""

import torch
from torch import Tensor

from abmll.adapter import Adapter
from abmll.errors import CheckpointError, TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class AdapterOptimizer:
    """torch's AdamW on the tensors of ``adapter`` that require a gradient."""

    def __init__(self, adapter: Adapter, learning_rate: float, scale_learning_rate: float, weight_decay: float) -> None:
        groups = [(adapter.mean_tensors(), learning_rate), (adapter.scale_tensors(), scale_learning_rate)]
        self.named = {name: tensor for name, tensor in adapter.named_tensors() if tensor.requires_grad}
        self.adamw = torch.optim.AdamW(
            [
                {"params": trained, "lr": rate, "base_lr": rate}
                for tensors, rate in groups
                if (trained := [tensor for tensor in tensors if tensor.requires_grad])
            ],
            weight_decay=weight_decay,
        )

    def step(self, rate: float, max_norm: float) -> float:
        """One step at ``rate`` times the learning rates; returns the gradient's norm before clipping (0: none).

        Raises ``TrainingError`` where a tensor that should learn has no gradient, or one that is not finite.
        """
        norms = {}
        for name, tensor in self.named.items():
            if tensor.grad is None:
                raise TrainingError(f"{name} has no gradient: it takes no part in the loss")
            norms[name] = torch.linalg.vector_norm(tensor.grad, dtype=torch.float64)
        for name, norm in norms.items():
            if not torch.isfinite(norm):
                raise TrainingError(f"the gradient of {name} is not finite; lower the learning rates")
        norm = float(torch.linalg.vector_norm(torch.stack(list(norms.values()))))
        if 0 < max_norm < norm:
            for tensor in self.named.values():
                assert tensor.grad is not None
                tensor.grad *= max_norm / norm
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def reset(self) -> None:
        """Forget the moments."""
        self.adamw.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """The moments under names such as ``576x192.mean_A.exp_avg``; empty before the first step."""
        return {
            f"{name}.{moment}": self.adamw.state[tensor][moment]
            for name, tensor in self.named.items()
            if tensor in self.adamw.state
            for moment in MOMENTS
        }

    def load_tensors(self, tensors: dict[str, Tensor], where: str) -> None:
        """Restore ``tensors()``. Raises ``CheckpointError`` where a moment is missing or has another shape."""
        self.reset()
        if not tensors:
            return
        for name, tensor in self.named.items():
            for moment in MOMENTS:
                saved = tensors.get(f"{name}.{moment}")
                if saved is None or (moment != "step" and saved.shape != tensor.shape):
                    raise CheckpointError(f"{where}: {name}.{moment} is missing or of another shape")
                self.adamw.state[tensor][moment] = saved.clone() if moment == "step" else saved.to(tensor.device)
