"""Reptile (Nichol, Achiam and Schulman, arXiv 1803.02999), with the ABMLL paper's settings.

An episode of task i: phi <- theta; K AdamW steps on phi against NLL(phi);  theta <- theta + eps (phi - theta),  with
eps falling linearly from ``reptile_epsilon`` to 0 over the episodes. No gradient moves theta, so it has no optimizer.
What is interpolated are the factors B and A themselves, not their product, whose interpolation has twice the rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.methods.loss import NO_NORMS
from abmll.methods.rule import PhiState, Rule


@dataclass
class ReptileState(PhiState):
    """phi is a copy of theta of which the mean factors learn."""

    done: float = 0.0  # share of the training's episodes before this one


class Reptile(Rule[ReptileState]):
    """The rule; an unseen task is learned by the same inner steps."""

    name = "reptile"
    label = "Reptile"

    def init(self, theta: Adapter) -> ReptileState:
        """Theta as given, phi its copy, an optimizer for phi's mean factors alone."""
        theta, phi = theta.clone(), theta.clone()
        for tensor in phi.mean_tensors():
            tensor.requires_grad_()
        return ReptileState(theta, phi, self.phi_optimizer(phi))

    def begin_episode(self, state: ReptileState, done: float) -> None:
        """phi <- theta; its AdamW moments persist across tasks."""
        state.done = done
        state.phi.copy_(state.theta)

    def share(self, state: ReptileState, batch: Batch, generator: torch.Generator) -> tuple[None, dict[str, Tensor]]:
        """Where phi has come to, and eps, which has its own decay."""
        epsilon = torch.tensor(self.config.reptile_epsilon * (1.0 - state.done), device=self.scorer.device)
        return None, {"epsilon": epsilon} | {name: tensor.detach() for name, tensor in state.optimizer.named.items()}

    @torch.no_grad()
    def take(self, state: ReptileState, mean: Mapping[str, Tensor], rate: float) -> Mapping[str, Tensor]:
        """theta <- theta + eps (phi - theta); the learning rates' factor leaves eps alone."""
        for name, into in state.theta.named_tensors():
            if name in mean:
                into.lerp_(mean[name], mean["epsilon"])
        return NO_NORMS
