"""ABMLL (Zhang, Snell and Griffiths, arXiv 2508.14285): Gaussian theta and phi, tempered evidence lower bound.

An episode of task i: phi <- theta; K steps on phi against  NLL(phi) + beta KL(q(phi) || p(phi | theta));  one step on
theta against  beta KL(q(phi) || p(phi | theta)) + (gamma / M) (-log p(theta)),  M the number of training tasks. As in
the authors' code phi is a constant in theta's step, and its AdamW moments persist across tasks: with ``meta_batch``
above 1 all episodes of an outer step begin with the same moments, and leave their mean.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.methods.loss import Loss
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import THETA, PhiState, Rule
from abmll.posterior import Noise, Prior


@dataclass
class AbmllState(PhiState):
    """Theta learns by AdamW as well."""

    theta_optimizer: AdapterOptimizer

    def optimizers(self) -> dict[str, AdapterOptimizer]:
        """Phi's and theta's."""
        return super().optimizers() | {THETA: self.theta_optimizer}


class Abmll(Rule[AbmllState]):
    """The rule; ``num_tasks`` is M."""

    name = "abmll"
    label = "ABMLL"
    is_posterior = True
    has_calibration = True

    def init(self, theta: Adapter) -> AbmllState:
        """Theta as given, phi its copy, an optimizer for each."""
        theta, phi = theta.clone().requires_grad_(), theta.clone().requires_grad_()
        return AbmllState(theta, phi, self.phi_optimizer(phi), self.theta_optimizer(theta))

    def begin_episode(self, state: AbmllState, done: float) -> None:
        """phi <- theta."""
        state.phi.copy_(state.theta)

    def inner_loss(self, state: AbmllState, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of q(phi) plus beta KL(q(phi) || p(phi | theta))."""
        with _constant(state.theta):
            loss = self._forward(state, batch, generator)
        return loss._replace(total=loss.nll + self.config.beta * loss.kl)

    def noise(self, mask: Tensor | None, generator: torch.Generator) -> Noise:
        """One sample of q(phi)."""
        return self.training_noise(mask, generator)

    def with_terms(self, loss: Loss, phi: Adapter, theta: Adapter) -> Loss:
        """Plus beta KL(q(phi) || p(phi | theta)), where the factors alone define it."""
        kl = self.kl(phi, theta)
        return loss._replace(kl=kl, total=loss.nll + self.config.beta * kl)

    def share(self, state: AbmllState, batch: Batch, generator: torch.Generator) -> tuple[Loss, dict[str, Tensor]]:
        """Theta's gradient, of the divergence and its own prior alone.

        In weight space both follow from the factors, without a forward pass. In output space they are over the
        activations of a pass over ``batch``.
        """
        with _constant(state.phi):
            loss = self.backward(self._outer_losses(state, batch, generator))
        return loss, state.theta_optimizer.taken()

    def take(self, state: AbmllState, mean: Mapping[str, Tensor], rate: float) -> Mapping[str, Tensor]:
        """One AdamW step on theta."""
        return state.theta_optimizer.follow(mean, rate, self.config.max_grad_norm)

    def _outer_losses(self, state: AbmllState, batch: Batch, generator: torch.Generator) -> Iterator[Loss]:
        if self.scorer.space.per_activation:
            losses = (self._forward(state, part, generator, self.prior) for part in batch.parts)
        else:
            zero = torch.zeros((), device=self.scorer.device)
            kl, prior = self.kl(state.phi, state.theta), self.negative_log_prior(state.theta)
            losses = [Loss(zero, zero, kl, prior, zero, size=0, tokens=0, passes=0)]
        for loss in losses:
            total = loss.nll + self.config.beta * loss.kl + self.config.gamma / self.num_tasks * loss.prior
            yield loss._replace(total=total)

    def _forward(self, state: AbmllState, batch: Batch, generator: torch.Generator, prior: Prior | None = None) -> Loss:
        """NLL at a sample of phi, KL(phi || theta), and in output space -log p(theta) if asked for, of one pass."""
        scores = self.scorer.scores(batch, state.phi, self.sampled(batch, generator, state.theta))
        loss = self.read(scores, batch)
        if scores.terms is None:
            return loss._replace(kl=self.kl(state.phi, state.theta))
        if prior is not None:
            loss = loss._replace(prior=scores.terms.negative_log_prior(prior))
        return loss._replace(kl=scores.terms.kl(), by_example=True)


@contextmanager
def _constant(adapter: Adapter) -> Iterator[None]:
    """Inside, no gradient reaches ``adapter``."""
    adapter.requires_grad_(False)
    try:
        yield
    finally:
        adapter.requires_grad_(True)
