"""ABMLL (Zhang, Snell and Griffiths, arXiv 2508.14285): Gaussian theta and phi, tempered evidence lower bound.

An episode of task i: phi <- theta; K steps on phi against  NLL(phi) + beta KL(q(phi) || p(phi | theta));  one step on
theta against the same plus  (gamma / M) (-log p(theta)),  M the number of training tasks. First-order: no gradient
runs through the inner steps.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass
from abmll.methods.loss import Loss, Watch, unwatched
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import State, follow, likelihood, read_loss, take_step
from abmll.posterior import Noise, Prior


class Abmll:
    """The rule; ``num_tasks`` is M.

    Raises ``ConfigError`` where a query batch is asked for that nothing would be computed from.
    """

    name: ClassVar[str] = "abmll"
    label: ClassVar[str] = "ABMLL"
    draws_from: ClassVar[Literal["task", "union"]] = "task"
    is_posterior: ClassVar[bool] = True
    is_trained: ClassVar[bool] = True
    needs_query: ClassVar[bool] = False
    base_method: ClassVar[str | None] = None
    settings_read: ClassVar[tuple[str, ...]] = ()
    space: ClassVar[str | None] = None
    demonstrations: ClassVar[bool] = False
    has_calibration: ClassVar[bool] = True

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        self.scorer = scorer
        self.config = config
        self.num_tasks = num_tasks
        # In weight space KL and prior follow from the factors: no batch takes part in theta's own gradient.
        self.outer_reads = scorer.space.per_activation or config.outer_gradient == "first-order"
        if config.outer_batch == "query" and not self.outer_reads:
            raise ConfigError(
                "outer_batch is 'query', but with outer_gradient 'prior' in weight space theta's step reads no batch; "
                "use outer_batch 'last' or outer_gradient 'first-order'"
            )
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

    def begin_episode(self, state: State, done: float) -> None:
        """phi <- theta; its AdamW moments persist across tasks (as in the authors' code) or start afresh."""
        state.phi.copy_(state.theta)
        assert state.inner is not None
        if self.config.moments == "reset":
            state.inner.reset()

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of q(phi) plus beta KL(q(phi) || p(phi | theta))."""
        with _constant(state.theta):
            loss = self._forward(state, batch, generator)
        return loss._replace(total=loss.nll + self.config.beta * loss.kl)

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One AdamW step on phi."""
        assert state.inner is not None
        loss = self.inner_loss(state, batch, generator)
        loss.total.backward()
        return take_step(loss, state.inner, self.config, rate)

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One AdamW step on theta.

        With ``outer_gradient="prior"`` phi is a constant: theta learns from the divergence and its own prior alone,
        which in weight space need no forward pass. ``"first-order"`` adds phi's gradient, d phi / d theta taken as
        the identity.
        """
        assert state.outer is not None
        if self.config.outer_gradient == "first-order":
            loss = self._outer_loss(state, batch, generator)
            loss.total.backward()
            _add_gradient(state.theta, state.phi)
        else:
            with _constant(state.phi):
                loss = self._outer_loss(state, batch, generator)
                loss.total.backward()
        return take_step(loss, state.outer, self.config, rate)

    def adapt(
        self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]], watch: Watch = unwatched
    ) -> Adapter:
        """q(phi | D) of an unseen task: phi <- theta, fresh optimizer, one sampled step per batch."""
        return follow(self, self.init(theta), batches, watch)

    def _forward(self, state: State, batch: Batch, generator: torch.Generator, prior: Prior | None = None) -> Loss:
        """NLL at a sample of phi, KL(phi || theta), and in output space -log p(theta) if asked for, of one pass."""
        noise = Noise(self.config.noise, generator, batch.mask, self.config.noise_rank)
        nll, scores = likelihood(self.scorer, self.config, state.phi, batch, Pass(noise, state.theta))
        if scores.terms is None:
            return read_loss(nll, self._weight_kl(state), torch.zeros_like(nll), scores, batch)
        log_prior = torch.zeros_like(nll) if prior is None else scores.terms.negative_log_prior(prior)
        return read_loss(nll, scores.terms.kl(), log_prior, scores, batch)

    def _outer_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL + beta KL + (gamma / M) (-log p(theta)); without the NLL where that would need a forward pass in vain."""
        if self.outer_reads:
            loss = self._forward(state, batch, generator, self.prior)
        else:
            zero = torch.zeros((), device=self.scorer.device)
            loss = Loss(zero, zero, self._weight_kl(state), zero, zero, size=0, tokens=0, passes=0)
        if not self.scorer.space.per_activation:
            loss = loss._replace(prior=self._weight_prior(state.theta))
        return loss._replace(
            total=loss.nll + self.config.beta * loss.kl + self.config.gamma / self.num_tasks * loss.prior
        )

    def _weight_kl(self, state: State) -> Tensor:
        space, phi, theta = self.scorer.space, state.phi.stacks, state.theta.stacks
        return torch.stack([space.kl(phi[shape], theta[shape]) for shape in theta]).sum()

    def _weight_prior(self, theta: Adapter) -> Tensor:
        space = self.scorer.space
        return torch.stack([space.negative_log_prior(factors, self.prior) for factors in theta.stacks.values()]).sum()


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
