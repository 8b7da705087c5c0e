"""BLoB (Wang et al., arXiv 2406.11675): q(A) = N(M, Omega^2) by backpropagation, B a parameter, on one task's examples.

A step minimises  NLL(A ~ q, B) + w KL(q(A) || N(0, sigma_p^2)),  the likelihood summed over the batch, with flipout
noise where ``noise`` is local. As in the paper a Gaussian on A alone stands for a low-rank Gaussian on the weights, and
the KL between the two Gaussians of A for that of the weights (theorem 3.2).

Different from the published code: log Omega is learned instead of G = sqrt(Omega), from the middle of the published
start; one AdamW follows the whole loss, where the code has a second optimizer, SGD, for the KL; the KL's weight is a
setting, where the code sums 2^i / (2^(M+1) - 1) over cycles of M batches. The exact lower bound has the weight
(batch size) / (number of examples).
"""

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass
from abmll.methods.loss import Loss, Watch, unwatched
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import State, follow, likelihood, read_loss, take_step
from abmll.methods.support import continued
from abmll.posterior import Noise


class Blob:
    """The rule; in its state theta is the prior and phi the posterior."""

    name: ClassVar[str] = "blob"
    label: ClassVar[str] = "BLoB"
    draws_from: ClassVar[Literal["task", "union"]] = "task"
    is_posterior: ClassVar[bool] = True
    is_trained: ClassVar[bool] = False
    needs_query: ClassVar[bool] = False
    base_method: ClassVar[str | None] = "regular-lora"
    settings_read: ClassVar[tuple[str, ...]] = ("blob_prior_std", "blob_init_log_sigma", "blob_kl_weight")
    space: ClassVar[str | None] = "factor-a"
    demonstrations: ClassVar[bool] = False
    has_calibration: ClassVar[bool] = False

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        self.scorer = scorer
        self.config = config
        self.settings = continued(config)

    def init(self, theta: Adapter) -> State:
        """q(A) around theta's A with the configured standard deviation, theta's B, and the prior."""
        config, settings, prior, phi = self.config, self.settings, theta.clone(), theta.clone()
        for stack in prior.stacks.values():
            stack.mean_A.zero_()
            stack.scale_A.fill_(math.log(settings.blob_prior_std))
        for stack in phi.stacks.values():
            stack.scale_A.fill_(settings.blob_init_log_sigma)
            for tensor in (stack.mean_A, stack.mean_B, stack.scale_A):
                tensor.requires_grad_()
        inner = AdapterOptimizer(phi, config.learning_rate, config.scale_learning_rate, config.weight_decay)
        return State(prior, phi, inner, None)

    def begin_episode(self, state: State, done: float) -> None:
        """Nothing: there is one task."""

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of A plus the weighted KL."""
        noise = Noise(self.config.noise, generator, batch.mask, self.config.noise_rank)
        nll, scores = likelihood(self.scorer, self.config, state.phi, batch, Pass(noise))
        loss = read_loss(nll, self._kl(state), torch.zeros_like(nll), scores, batch)
        return loss._replace(total=loss.nll + self.settings.blob_kl_weight * loss.kl)

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One AdamW step on M, log Omega and B."""
        assert state.inner is not None
        loss = self.inner_loss(state, batch, generator)
        loss.total.backward()
        return take_step(loss, state.inner, self.config, rate)

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> None:
        """Nothing: theta is not learned."""

    def adapt(
        self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]], watch: Watch = unwatched
    ) -> Adapter:
        """q(A) and B after one step per batch, fresh optimizer."""
        return follow(self, self.init(theta), batches, watch)

    def _kl(self, state: State) -> Tensor:
        space, phi, prior = self.scorer.space, state.phi.stacks, state.theta.stacks
        return torch.stack([space.kl(phi[shape], prior[shape]) for shape in phi]).sum()
