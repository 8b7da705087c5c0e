"""MAML (Finn, Abbeel and Levine, arXiv 1703.03400) on LoRA's mean factors, exact and to first order.

An episode of task i: phi_0 = theta; K plain gradient steps  phi_k+1 = phi_k - alpha d NLL(phi_k; batch k) / d phi_k;
theta learns from the loss of what was learned on a held-out batch,  d NLL(phi_K; query) / d theta.  MAML differentiates
through all K steps, second derivatives included; FOMAML takes d phi_K / d theta as the identity. The inner steps are
plain ones because AdamW's divide by the root of a square that is zero at first, where it has no derivative.

With ``meta_batch`` above 1 theta takes one AdamW step on the mean gradient of so many episodes, as MAML-en-LLM
(arXiv 2405.11446) does with its several tasks for every update.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer
from abmll.methods.descent import Descent, norms, tied_to
from abmll.methods.loss import Loss, Watch, unwatched
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import State, detach, follow, likelihood, read_loss


class Fomaml:
    """First-order MAML: memory and cost of an episode are those of K + 1 plain LoRA steps."""

    name: ClassVar[str] = "fomaml"
    label: ClassVar[str] = "FOMAML"
    draws_from: ClassVar[Literal["task", "union"]] = "task"
    is_posterior: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True
    needs_query: ClassVar[bool] = True
    base_method: ClassVar[str | None] = None
    settings_read: ClassVar[tuple[str, ...]] = ()
    space: ClassVar[str | None] = None
    demonstrations: ClassVar[bool] = False
    has_calibration: ClassVar[bool] = False

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        self.scorer = scorer
        self.config = config
        self.descent = Descent(config.inner_sgd_rate, None, config.max_grad_norm)

    def init(self, theta: Adapter) -> State:
        """Theta as given with an optimizer, phi its copy without one; only what ``descent`` moves learns."""
        theta, phi = theta.clone(), theta.clone()
        for adapter in (theta, phi):
            for tensor in self.descent.learned(adapter).values():
                tensor.requires_grad_()
        config = self.config
        outer = AdapterOptimizer(
            theta, config.outer_learning_rate, config.outer_scale_learning_rate, config.weight_decay
        )
        return State(theta, phi, None, outer)

    def begin_episode(self, state: State, done: float) -> None:
        """phi <- theta."""
        state.phi.copy_(state.theta)

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at the mean."""
        nll, scores = likelihood(self.scorer, self.config, state.phi, batch)
        zero = torch.zeros_like(nll)
        return read_loss(nll, zero, zero, scores, batch)

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One plain gradient step on phi; where phi is tied to theta it stays a function of theta."""
        loss = self.inner_loss(state, batch, generator)
        gradients = self.descent.gradients(loss.total, state.phi, create_graph=state.tied)
        moved = self.descent.moved(state.phi, gradients, rate)
        if state.tied:
            state.phi = moved
        else:
            state.phi.copy_(moved)
        return detach(loss, norms(gradients))

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """theta learns from the query batch's gradient at phi, d phi / d theta taken as the identity."""
        loss = self.inner_loss(state, batch, generator)
        return self._gather(state, loss, self.descent.gradients(loss.total, state.phi), rate)

    def adapt(
        self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]], watch: Watch = unwatched
    ) -> Adapter:
        """The parameters of an unseen task: the same plain steps from theta, one per batch, without a graph."""
        return follow(self, self.init(theta), batches, watch)

    def _gather(self, state: State, loss: Loss, gradients: Mapping[str, Tensor], rate: float) -> Loss:
        """Add a task's share to theta's gradient; the last of a meta-batch takes the AdamW step.

        The norms returned are those of this task's gradient, whether or not a step is taken.
        """
        assert state.outer is not None
        for name, tensor in state.outer.named.items():
            share = gradients[name] / self.config.meta_batch
            tensor.grad = share if tensor.grad is None else tensor.grad + share
        state.gathered += 1
        if state.gathered == self.config.meta_batch:
            state.outer.step(rate, self.config.max_grad_norm)
            state.gathered = 0
        return detach(loss, norms(gradients))


class Maml(Fomaml):
    """The exact gradient: an episode keeps the graphs of all its inner steps until its outer step is done."""

    name: ClassVar[str] = "maml"
    label: ClassVar[str] = "MAML"

    def begin_episode(self, state: State, done: float) -> None:
        """phi = theta, and a function of it from here to the outer step."""
        state.phi, state.tied = tied_to(state.theta), True

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """As FOMAML's, on kernels that can be differentiated twice (the fused attention's backward cannot)."""
        with sdpa_kernel(SDPBackend.MATH) if state.tied else nullcontext():
            return super().inner_step(state, batch, generator, rate)

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """theta learns from d NLL(phi; query) / d theta, through every inner step; their graphs are then freed."""
        loss = self.inner_loss(state, batch, generator)
        gradients = self.descent.gradients(loss.total, state.theta)
        untie(state)
        return self._gather(state, loss, gradients, rate)


def untie(state: State) -> None:
    """Let go of the graph behind phi."""
    state.phi, state.tied = state.phi.clone(), False
