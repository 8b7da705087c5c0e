"""ABML (Ravi and Beatson, "Amortized Bayesian Meta-Learning", ICLR 2019): a Gaussian posterior learned through MAML.

Theta is the prior p(phi | theta) and the start of every posterior q(phi). An episode of task i: lambda_0 = theta; K plain
gradient steps on the posterior's parameters lambda against  NLL(batch k) + beta KL(q_k || p(phi | theta));  theta
learns from  NLL(support and query) + beta KL(q_K || p(phi | theta)) + (gamma / M) (-log p(theta)),  differentiated
through all K steps as in MAML. As in the paper's algorithm the last loss is that of the whole task: the K inner
batches are read again at q_K, beside the held-out one, so that the divergence is weighed against all of the task's
data. The paper's own weights are beta = gamma = 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass
from abmll.methods.descent import Descent
from abmll.methods.loss import Loss
from abmll.methods.maml import Maml, untie
from abmll.methods.rule import State, detach, likelihood, read_loss
from abmll.posterior import Noise, Prior


class Abml(Maml):
    """The rule; ``num_tasks`` is M.

    Raises ``ConfigError`` for a standard deviation whose divergence cannot be differentiated twice.
    """

    name: ClassVar[str] = "abml"
    label: ClassVar[str] = "ABML"
    is_posterior: ClassVar[bool] = True
    space: ClassVar[str | None] = "weight"

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        super().__init__(scorer, config, num_tasks)
        adapter = scorer.adapter_config
        if adapter.sigma_rank > 1 or adapter.sigma_floor > 0:
            raise ConfigError(
                "abml differentiates the divergence twice, which only its closed form allows; use sigma_rank 1 and "
                "sigma_floor 0"
            )
        self.num_tasks = num_tasks
        self.descent = Descent(config.inner_sgd_rate, config.inner_sgd_scale_rate, config.max_grad_norm)
        self.prior = Prior(config.prior_std, config.gamma_shape, config.gamma_rate)

    def begin_episode(self, state: State, done: float) -> None:
        """lambda = theta, and a function of it from here to the outer step; nothing of the task is read yet."""
        super().begin_episode(state, done)
        state.support = []

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of q(phi) plus beta KL(q(phi) || p(phi | theta))."""
        loss = self._sampled(state.phi, batch, generator)
        loss = loss._replace(kl=self._kl(state.phi, state.theta))
        return loss._replace(total=loss.nll + self.config.beta * loss.kl)

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One plain gradient step on lambda; theta's own part in the divergence stays in the graph."""
        if state.tied:
            state.support.append(batch)
        return super().inner_step(state, batch, generator, rate)

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """theta learns from the loss of the whole task: directly, and through every inner step.

        The two parts meet at lambda_K: one batch after the other leaves its gradient with respect to lambda_K, so that
        no more than one forward pass is held at a time, and what they sum to goes through the inner steps once.
        """
        final = state.phi.clone().requires_grad_()
        losses = []
        for one in (*state.support, batch):
            losses.append(self._sampled(final, one, generator))
            losses[-1].total.backward()
        kl, prior = self._kl(final, state.theta), self._prior(state.theta)
        own = self.config.beta * kl + self.config.gamma / self.num_tasks * prior
        gradients = self._whole_gradient(state, final, own)
        untie(state)
        state.support = []
        return self._gather(state, _sum([detach(loss, {}) for loss in losses], own, kl, prior), gradients, rate)

    def _whole_gradient(self, state: State, final: Adapter, own: Tensor) -> dict[str, Tensor]:
        """d / d theta of the loss whose likelihood has left its gradient in ``final``, a copy of lambda_K."""
        theta, reached, ends = (self.descent.learned(one) for one in (state.theta, state.phi, final))
        direct = torch.autograd.grad(own, [*theta.values(), *ends.values()])
        at_ends = []
        for tensor, more in zip(ends.values(), direct[len(theta) :], strict=True):
            assert tensor.grad is not None
            at_ends.append(tensor.grad + more)
        through = torch.autograd.grad(list(reached.values()), list(theta.values()), grad_outputs=at_ends)
        return {name: here + there for name, here, there in zip(theta, direct, through, strict=False)}

    def _sampled(self, phi: Adapter, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of q(phi), with the noise of training."""
        noise = Noise(self.config.noise, generator, batch.mask, self.config.noise_rank)
        nll, scores = likelihood(self.scorer, self.config, phi, batch, Pass(noise))
        zero = torch.zeros_like(nll)
        return read_loss(nll, zero, zero, scores, batch)

    def _kl(self, phi: Adapter, theta: Adapter) -> Tensor:
        space = self.scorer.space
        return torch.stack([space.kl(factors, theta.stacks[shape]) for shape, factors in phi.stacks.items()]).sum()

    def _prior(self, theta: Adapter) -> Tensor:
        space = self.scorer.space
        return torch.stack([space.negative_log_prior(factors, self.prior) for factors in theta.stacks.values()]).sum()


def _sum(losses: list[Loss], own: Tensor, kl: Tensor, prior: Tensor) -> Loss:
    """Several batches' passes and theta's own terms as one loss."""
    nll = torch.stack([loss.nll for loss in losses]).sum()
    correct = torch.stack([loss.correct for loss in losses]).sum()
    size, tokens = sum(loss.size for loss in losses), sum(loss.tokens for loss in losses)
    return Loss(nll + own, nll, kl, prior, correct, size, tokens, passes=len(losses))
