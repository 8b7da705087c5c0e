"""ABMLL (Zhang, Snell and Griffiths, arXiv 2508.14285): Gaussian theta and phi, tempered evidence lower bound.

A visit of task i: phi <- theta; K steps on phi against  NLL(phi) + beta KL(q(phi) || p(phi | theta));  one step on
theta against the same plus  (gamma / M) (-log p(theta)),  M the number of training tasks. First-order: no gradient
runs through the inner steps.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor

from abmll.adapter import Adapter
from abmll.config import LearningConfig
from abmll.language.batch import Batch
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import Loss, State, backward, likelihood, num_correct, take_step
from abmll.language.scorer import OptionScorer, Pass
from abmll.posterior import Noise, Prior


class Abmll:
    """The rule; ``num_tasks`` is M."""

    name: ClassVar[str] = "abmll"
    label: ClassVar[str] = "ABMLL"
    episodes: ClassVar[Literal["task", "union"]] = "task"
    is_posterior: ClassVar[bool] = True
    is_trained: ClassVar[bool] = True

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        self.scorer = scorer
        self.config = config
        self.num_tasks = num_tasks
        self.prior = Prior(config.prior_std, config.gamma_shape, config.gamma_rate)

    def init(self, theta: Adapter) -> State:
        """Theta as given, phi its copy, an optimizer for each."""
        config = self.config
        theta, phi = theta.clone().requires_grad_(), theta.clone().requires_grad_()
        inner = AdapterOptimizer(phi, config.learning_rate, config.scale_learning_rate, config.weight_decay)
        outer = AdapterOptimizer(
            theta, config.outer_learning_rate, config.outer_scale_learning_rate, config.weight_decay
        )
        return State(theta, phi, inner, outer)

    def begin_visit(self, state: State) -> None:
        """phi <- theta; its AdamW moments persist across tasks (as in the authors' code) or start afresh."""
        state.phi.copy_(state.theta)
        if self.config.moments == "reset":
            state.inner.reset()

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of q(phi) plus beta KL(q(phi) || p(phi | theta))."""
        with _constant(state.theta):
            nll, correct, kl, prior = self._forward(state, batch, generator)
        return Loss(nll + self.config.beta * kl, nll, kl, prior, correct, len(batch.answers))

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One AdamW step on phi."""
        loss = self.inner_loss(state, batch, generator)
        backward(loss)
        return take_step(loss, state.inner, self.config, rate)

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One AdamW step on theta.

        With ``outer_gradient="prior"`` phi is a constant: theta learns from the divergence and its own prior alone,
        which in weight space need no forward pass. ``"first-order"`` adds phi's gradient, d phi / d theta taken as
        the identity.
        """
        assert state.outer is not None
        if self.config.outer_gradient == "first-order":
            loss = self._outer_loss(*self._forward(state, batch, generator), len(batch.answers))
            backward(loss)
            _add_gradient(state.theta, state.phi)
            return take_step(loss, state.outer, self.config, rate)
        with _constant(state.phi):
            if self.scorer.space.per_activation:
                terms = self._forward(state, batch, generator)
            else:
                zero = torch.zeros((), device=self.scorer.device)
                terms = (zero, zero, *self._weight_terms(state))
            loss = self._outer_loss(*terms, len(batch.answers))
            backward(loss)
        return take_step(loss, state.outer, self.config, rate)

    def adapt(self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]]) -> Adapter:
        """q(phi | D) of an unseen task: phi <- theta, fresh optimizer, one sampled step per batch."""
        state = self.init(theta)
        for batch, generator in batches:
            self.inner_step(state, batch, generator, rate=1.0)
        return state.phi.requires_grad_(False)

    def _forward(self, state: State, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """NLL at a sample of phi, number of right answers, KL(phi || theta), -log p(theta)."""
        noise = Noise(self.config.noise, generator, batch.mask)
        nll, scores = likelihood(self.scorer, self.config, state.phi, batch, Pass(noise, state.theta, self.prior))
        if scores.terms is None:
            return nll, num_correct(scores, batch), *self._weight_terms(state)
        kl, prior = torch.stack(scores.terms.kl).sum(), torch.stack(scores.terms.negative_log_prior).sum()
        return nll, num_correct(scores, batch), kl, prior

    def _weight_terms(self, state: State) -> tuple[Tensor, Tensor]:
        """KL(phi || theta) and -log p(theta) where the factors alone determine them."""
        space, phi, theta = self.scorer.space, state.phi.stacks, state.theta.stacks
        kl = torch.stack([space.kl(phi[shape], theta[shape]) for shape in theta]).sum()
        prior = torch.stack([space.negative_log_prior(factors, self.prior) for factors in theta.values()]).sum()
        return kl, prior

    def _outer_loss(self, nll: Tensor, correct: Tensor, kl: Tensor, prior: Tensor, size: int) -> Loss:
        total = nll + self.config.beta * kl + self.config.gamma / self.num_tasks * prior
        return Loss(total, nll, kl, prior, correct, size)


@contextmanager
def _constant(adapter: Adapter) -> Iterator[None]:
    """Inside, no gradient reaches ``adapter``."""
    adapter.requires_grad_(False)
    try:
        yield
    finally:
        adapter.requires_grad_(True)


def _add_gradient(theta: Adapter, phi: Adapter) -> None:
    """Move phi's gradient onto theta's."""
    for (_, into), (_, source) in zip(theta.named_tensors(), phi.named_tensors(), strict=True):
        assert into.grad is not None
        assert source.grad is not None
        into.grad += source.grad
        source.grad = None
