"""MAML (Finn, Abbeel and Levine, arXiv 1703.03400) on LoRA's mean factors, exact and to first order.

An episode of task i: phi_0 = theta; K plain gradient steps  phi_k+1 = phi_k - alpha d NLL(phi_k; batch k) / d phi_k;
theta learns from the loss of what was learned on a held-out batch,  d NLL(phi_K; query) / d theta.  MAML differentiates
through all K steps, second derivatives included; FOMAML takes d phi_K / d theta as the identity. The inner steps are
plain ones because AdamW's divide by the root of a square that is zero at first, where it has no derivative.

With ``meta_batch`` above 1 theta takes one AdamW step on the mean gradient of so many episodes, as MAML-en-LLM
(arXiv 2405.11446) does with its several tasks for every update.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer
from abmll.methods.descent import Descent
from abmll.methods.loss import NO_NORMS, Loss, combined
from abmll.methods.optimizer import AdapterOptimizer, gradient_norms
from abmll.methods.rule import THETA, Rule, State
from abmll.posterior import Factors


@dataclass
class MamlState(State):
    """Theta has an optimizer, phi none; while phi is tied it is a function of theta, with the graph behind it."""

    optimizer: AdapterOptimizer
    tied: bool = False

    def optimizers(self) -> dict[str, AdapterOptimizer]:
        """Theta's."""
        return {THETA: self.optimizer}

    def tie(self) -> None:
        """phi = theta, and a function of it from here on: theta's values as tensors of their own in its graph."""
        views = {shape: Factors(*(one.view_as(one) for one in factors)) for shape, factors in self.theta.stacks.items()}
        self.phi, self.tied = Adapter(views, self.theta.layers), True

    def untie(self) -> None:
        """Let go of the graph behind phi."""
        self.phi, self.tied = self.phi.clone(), False


class Fomaml(Rule[MamlState]):
    """First-order MAML: memory and cost of an episode are those of K + 1 plain LoRA steps."""

    name = "fomaml"
    label = "FOMAML"
    needs_query = True

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        super().__init__(scorer, config, num_tasks)
        self.descent = Descent(config.inner_sgd_rate, None, config.max_grad_norm)

    def init(self, theta: Adapter) -> MamlState:
        """Theta as given, phi its copy; only what ``descent`` moves learns."""
        theta, phi = theta.clone(), theta.clone()
        for adapter in (theta, phi):
            for tensor in self.descent.learned(adapter).values():
                tensor.requires_grad_()
        return MamlState(theta, phi, self.theta_optimizer(theta))

    def begin_episode(self, state: MamlState, done: float) -> None:
        """phi <- theta."""
        state.phi.copy_(state.theta)

    def inner_step(self, state: MamlState, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One plain gradient step on phi; where phi is tied to theta it stays a function of theta."""
        loss, gradients = self.slope(state, batch, generator)
        moved = self.descent.moved(state.phi, gradients, rate)
        if state.tied:
            state.phi = moved
        else:
            state.phi.copy_(moved)
        return loss.stepped(gradient_norms(gradients))

    def share(self, state: MamlState, batch: Batch, generator: torch.Generator) -> tuple[Loss, dict[str, Tensor]]:
        """The query batch's gradient at phi, d phi / d theta taken as the identity."""
        return self.slope(state, batch, generator)

    def take(self, state: MamlState, mean: Mapping[str, Tensor], rate: float) -> Mapping[str, Tensor]:
        """One AdamW step on theta."""
        return state.optimizer.follow(mean, rate, self.config.max_grad_norm)

    def slope(self, state: MamlState, batch: Batch, generator: torch.Generator) -> tuple[Loss, dict[str, Tensor]]:
        """The inner loss and its gradient with respect to phi, which has one itself where phi is tied."""
        read: list[Loss] = []
        gradients: dict[str, Tensor] = {}
        for part in batch.parts:
            loss = self.inner_loss(state, part, generator)
            loss = loss.further() if read else loss
            for name, one in self.descent.gradients(loss.total, state.phi, create_graph=state.tied).items():
                gradients[name] = gradients[name] + one if name in gradients else one
            read.append(loss.stepped(NO_NORMS))
        return combined(read), gradients


class Maml(Fomaml):
    """The exact gradient: an episode keeps the graphs of all its inner steps until its outer step is done."""

    name = "maml"
    label = "MAML"
    accumulates = False

    def begin_episode(self, state: MamlState, done: float) -> None:
        """phi = theta, and a function of it from here to the outer step."""
        state.tie()

    def inner_step(self, state: MamlState, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """As FOMAML's, on kernels that can be differentiated twice (the fused attention's backward cannot)."""
        with sdpa_kernel(SDPBackend.MATH) if state.tied else nullcontext():
            return super().inner_step(state, batch, generator, rate)

    def share(self, state: MamlState, batch: Batch, generator: torch.Generator) -> tuple[Loss, dict[str, Tensor]]:
        """d NLL(phi; query) / d theta, through every inner step; their graphs are then freed."""
        loss = self.inner_loss(state, batch, generator)
        gradients = self.descent.gradients(loss.total, state.theta)
        state.untie()
        return loss.stepped(NO_NORMS), gradients
