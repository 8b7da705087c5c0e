"""ABML (Ravi and Beatson, "Amortized Bayesian Meta-Learning", ICLR 2019): a Gaussian posterior learned through MAML.

Theta is the prior p(phi | theta) and the start of every posterior q(phi). An episode of task i: lambda_0 = theta; K
plain gradient steps on the posterior's parameters lambda against  NLL(batch k) + beta KL(q_k || p(phi | theta));  theta
learns from  NLL(support and query) + beta KL(q_K || p(phi | theta)) + (gamma / M) (-log p(theta)),  differentiated
through all K steps as in MAML. As in the paper's algorithm the last loss is that of the whole task: the K inner
batches are read again at q_K, beside the held-out one, so that the divergence is weighed against all of the task's
data. The paper's own weights are beta = gamma = 1.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer
from abmll.methods.descent import Descent
from abmll.methods.loss import NO_NORMS, Loss, combined
from abmll.methods.maml import Maml, MamlState


@dataclass
class AbmlState(MamlState):
    """As MAML's, with what the inner steps have read, which the outer step reads again."""

    support: list[Batch] = field(default_factory=list)


class Abml(Maml):
    """The rule; ``num_tasks`` is M.

    Raises ``ConfigError`` for a standard deviation whose divergence cannot be differentiated twice.
    """

    name = "abml"
    label = "ABML"
    is_posterior = True
    space = "weight"

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        super().__init__(scorer, config, num_tasks)
        adapter = scorer.adapter_config
        if adapter.sigma_rank > 1 or adapter.sigma_floor > 0:
            raise ConfigError(
                "abml differentiates the divergence twice, which only its closed form allows; use sigma_rank 1 and "
                "sigma_floor 0"
            )
        self.descent = Descent(config.inner_sgd_rate, config.inner_sgd_scale_rate, config.max_grad_norm)

    def init(self, theta: Adapter) -> AbmlState:
        """As MAML's; the standard deviations learn too."""
        return AbmlState(**vars(super().init(theta)))

    def inner_loss(self, state: MamlState, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of q(phi) plus beta KL(q(phi) || p(phi | theta))."""
        loss = self.likelihood(state.phi, batch, self.sampled(batch, generator))
        kl = self.kl(state.phi, state.theta)
        return loss._replace(kl=kl, total=loss.nll + self.config.beta * kl)

    def inner_step(self, state: MamlState, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One plain gradient step on lambda; theta's own part in the divergence stays in the graph."""
        assert isinstance(state, AbmlState)
        if state.tied:
            state.support.append(batch)
        return super().inner_step(state, batch, generator, rate)

    def share(self, state: MamlState, batch: Batch, generator: torch.Generator) -> tuple[Loss, dict[str, Tensor]]:
        """The gradient of the loss of the whole task: directly, and through every inner step.

        The two parts meet at lambda_K: one batch after the other leaves its gradient with respect to lambda_K, so that
        no more than one forward pass is held at a time, and what they sum to goes through the inner steps once.
        """
        assert isinstance(state, AbmlState)
        final = state.phi.clone().requires_grad_()
        losses = []
        for one in (*state.support, batch):
            losses.append(self.likelihood(final, one, self.sampled(one, generator)))
            losses[-1].total.backward()
        kl, prior = self.kl(final, state.theta), self.negative_log_prior(state.theta)
        own = self.config.beta * kl + self.config.gamma / self.num_tasks * prior
        gradients = self._whole_gradient(state, final, own)
        state.untie()
        state.support.clear()
        read = combined(losses)
        loss = read._replace(total=read.nll + own, kl=kl, prior=prior, options=None)
        return loss.stepped(NO_NORMS), gradients

    def _whole_gradient(self, state: AbmlState, final: Adapter, own: Tensor) -> dict[str, Tensor]:
        """d / d theta of the loss whose likelihood has left its gradient in ``final``, a copy of lambda_K."""
        theta, reached, ends = (self.descent.learned(one) for one in (state.theta, state.phi, final))
        direct = torch.autograd.grad(own, [*theta.values(), *ends.values()])
        at_ends = []
        for tensor, more in zip(ends.values(), direct[len(theta) :], strict=True):
            assert tensor.grad is not None
            at_ends.append(tensor.grad + more)
        through = torch.autograd.grad(list(reached.values()), list(theta.values()), grad_outputs=at_ends)
        return {name: here + there for name, here, there in zip(theta, direct, through, strict=False)}
