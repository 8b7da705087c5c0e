"""What every learning rule is: a base class that does what rules have in common, so that a rule has only what differs.

``init`` makes the state, ``begin_episode`` opens a task, ``inner_loss`` and ``inner_step`` learn its batches, ``share``
is what the episode teaches theta, ``take`` lets theta learn from the mean share of ``meta_batch`` episodes, ``adapt``
learns an unseen task. Rules know nothing of files, clocks, progress or other processes.

The scale of every loss is that of ``abmll.posterior``: sums in nats, weighed by beta and gamma alone.

A step waits for no number: on an accelerator it is only queued. What came of an episode's steps is read and checked by
whoever keeps their result, with ``read_steps``.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from abmll.common.config import ContinuedConfig, LearningConfig
from abmll.common.settings import flatten, pick
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass, Scores, nll
from abmll.methods.compiled import compiled_loss
from abmll.methods.loss import NO_NORMS, Loss, combined, read_along
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.support import Support
from abmll.posterior import Noise, Prior
from abmll.posterior.hypotheses import HeadPrior, Known

PHI, THETA = "optimizer_phi", "optimizer_theta"  # the optimizers' files in a checkpoint


@dataclass
class State:
    """Global and task parameters; a rule without the distinction holds one adapter twice.

    A rule with more to remember has a state of its own. Only theta and the optimizers' moments outlive a checkpoint:
    the rest belongs to the episodes between two outer steps, and checkpoints are made after an outer step only.
    """

    theta: Adapter
    phi: Adapter

    def optimizers(self) -> dict[str, AdapterOptimizer]:
        """The optimizers by the names of their files in a checkpoint."""
        return {}

    def passed_on(self) -> dict[str, Tensor]:
        """What an episode leaves to the next one beside theta, by name, not copied."""
        return {}

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Be as it was when ``passed_on`` gave these ``tensors``, which are copied."""


@dataclass
class PhiState(State):
    """The state where phi takes AdamW steps, and no gradient moves theta."""

    optimizer: AdapterOptimizer

    def optimizers(self) -> dict[str, AdapterOptimizer]:
        """Phi's."""
        return {PHI: self.optimizer}

    def passed_on(self) -> dict[str, Tensor]:
        """The moments of phi's optimizer."""
        return self.optimizer.tensors()

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """The moments as they were."""
        self.optimizer.put_back(tensors)


class Classifier(Protocol):
    """What learns a task from its examples' features; ``answers`` (N,) are columns of their options.

    ``samples`` is how many of what was learned a prediction averages over. ``quiet`` shows no progress.
    """

    samples: int

    def __init__(self, prior: HeadPrior, known: Known, answers: Tensor, seed: int = 0, quiet: bool = True) -> None: ...

    def probs(self, asked: Known) -> Tensor:
        """(P, M, C): the options' probabilities of M questions under each of P samples of what was learned."""
        ...

    def temper(self, probs: Tensor) -> Tensor:
        """What becomes of the samples' mean (M, C)."""
        ...

    def fitted(self) -> dict[str, Tensor]:
        """What took long to learn and can be put back; by default nothing."""
        return {}

    @classmethod
    def restored(
        cls, prior: HeadPrior, known: Known, answers: Tensor, seed: int, fitted: Mapping[str, Tensor]
    ) -> "Classifier":
        """One of which ``fitted()`` gave this, without learning. Raises ``ValueError`` where it is not that."""
        raise ValueError("this classifier is learned anew each time")


S = TypeVar("S", bound=State)


class Rule(Generic[S]):
    """A learning rule, by default AdamW steps on the likelihood at phi's mean, of which theta learns nothing.

    ``config`` has the settings of the methods that continue another's run too, at their defaults where none are given;
    ``num_tasks`` is the number of training tasks.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    draws_from: ClassVar[Literal["task", "union"]] = "task"  # an episode's batches: of one task, or of all shuffled
    is_posterior: ClassVar[bool] = False  # phi has a learned standard deviation, so that prediction can sample
    is_trained: ClassVar[bool] = True  # meta-training changes theta
    accumulates: ClassVar[bool] = True  # a gradient step can be taken in parts
    needs_query: ClassVar[bool] = False  # an episode ends with a held-out batch
    base_method: ClassVar[str | None] = None  # not meta-trained: unseen tasks start from the theta of that rule's run
    settings_read: ClassVar[tuple[str, ...]] = ()  # what of ``ContinueConfig`` it reads
    space: ClassVar[str | None] = None  # the Gaussian space that it needs; None: any
    demonstrations: ClassVar[bool] = False  # prompts hold labelled examples
    has_calibration: ClassVar[bool] = False  # theta and phi hold a temperature and option biases
    classifier: ClassVar[type[Classifier] | None] = None  # of the model's features, in place of its own answers
    learns_head_prior: ClassVar[bool] = False  # the classifier's prior is learned from the training tasks
    needs_options: ClassVar[bool] = False  # learns from the options' probabilities, not from the likelihood alone
    batch_calibrated: ClassVar[bool] = False  # answers are divided by their mean over all questions

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        self.scorer = scorer
        self.config = config if isinstance(config, ContinuedConfig) else pick(ContinuedConfig, flatten(config))
        self.num_tasks = num_tasks

    def init(self, theta: Adapter) -> S:
        """The state at the start, from a fresh or a loaded theta, which is left as it is."""
        raise NotImplementedError

    def begin_episode(self, state: S, done: float) -> None:
        """Open the episode of a task; ``done`` is the share of the training's episodes before it, in [0, 1)."""

    def inner_loss(self, state: S, batch: Batch, generator: torch.Generator) -> Loss:
        """The loss whose gradient the inner step follows, of one pass over ``batch`` without its rest."""
        return self.likelihood(state.phi, batch)

    def inner_step(self, state: S, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One gradient step on the task's parameters, at ``rate`` times the learning rates."""
        compilation = self.scorer.compilation
        with nullcontext() if compilation is None else compilation.refusing():
            parts = (self.step_loss(state, part, generator) for part in batch.parts)
            return self.adamw_step(parts, state.optimizers()[PHI], rate)

    def step_loss(self, state: S, part: Batch, generator: torch.Generator) -> Loss:
        """``inner_loss``, as a compiled graph where the scorer is to have it so."""
        if self.scorer.compilation is None:
            return self.inner_loss(state, part, generator)
        return compiled_loss(self, state.phi, state.theta, part, generator)

    def share(self, state: S, batch: Batch, generator: torch.Generator) -> tuple[Loss | None, dict[str, Tensor]]:
        """What the episode teaches theta: tensors by name, whose mean over an outer step ``take`` gets.

        Beside them the loss of the outer step; None where the rule computes none.
        """
        return None, {}

    def take(self, state: S, mean: Mapping[str, Tensor], rate: float) -> Mapping[str, Tensor]:
        """Let theta learn from the mean share. Returns the norms of the gradient that it followed, if it was one."""
        return NO_NORMS

    def outer_step(self, state: S, batch: Batch, generator: torch.Generator, rate: float) -> Loss | None:
        """An outer step of this one episode."""
        loss, share = self.share(state, batch, generator)
        norms = self.take(state, share, rate)
        return None if loss is None else loss.stepped(norms)

    def num_batches(self, support: Support) -> int:
        """How many batches ``adapt`` reads."""
        return support.steps

    def adapt(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """What was learned of an unseen task: one adapter, or several of equal weight. ``theta`` is left as it is."""
        return (self.learn(self.init(theta), support),)

    # What the functions above are made of.

    def learn(self, state: S, support: Support, learner: int = 0) -> Adapter:
        """phi after one inner step for each batch of a learner. Raises ``TrainingError`` as ``read_steps``."""
        read_along(self._steps(state, support, learner), "phi", state.phi)
        return state.phi.requires_grad_(False)

    def _steps(self, state: S, support: Support, learner: int) -> Iterator[Loss]:
        for batch, generator in support.batches(learner):
            loss = self.inner_step(state, batch, generator, rate=1.0)
            if learner == 0:
                support.losses.append(loss)
            yield loss

    def likelihood(self, phi: Adapter, batch: Batch, how: Pass | None = None) -> Loss:
        """The batch's negative log-likelihood, at phi's mean unless ``how`` has noise."""
        return self.read(self.scorer.scores(batch, phi, how), batch)

    def read(self, scores: Scores, batch: Batch) -> Loss:
        """The negative log-likelihood of a forward pass over ``batch``; the other terms are zero."""
        loss = nll(scores, batch.answers, self.config.loss)
        zero = torch.zeros_like(loss)
        right = scores.options.argmax(-1) == batch.answers if scores.written is None else scores.written
        options = torch.log_softmax(scores.options.detach(), -1)
        return Loss(loss, loss, zero, zero, right.sum(), len(batch.answers), batch.num_tokens, options=options)

    def noise(self, mask: Tensor | None, generator: torch.Generator) -> Noise | None:
        """That of an inner step's pass; ``mask`` is the batch's. None where it is at phi's mean."""
        return None

    def with_terms(self, loss: Loss, phi: Adapter, theta: Adapter) -> Loss:
        """An inner step's ``loss`` of a pass, with the terms that follow from the factors alone."""
        return loss

    def sampled(self, batch: Batch, generator: torch.Generator, theta: Adapter | None = None) -> Pass:
        """A pass at one sample of q(phi), with the noise of training."""
        return Pass(self.training_noise(batch.mask, generator), theta)

    def training_noise(self, mask: Tensor | None, generator: torch.Generator) -> Noise:
        """The noise of training, as the settings have it."""
        return Noise(self.config.noise, generator, mask, self.config.noise_rank)

    def kl(self, phi: Adapter, theta: Adapter) -> Tensor:
        """KL(q(phi) || p(phi | theta)) of Gaussians over the weights, summed over all layers."""
        space = self.scorer.space
        return torch.stack([space.kl(factors, theta.stacks[shape]) for shape, factors in phi.stacks.items()]).sum()

    @property
    def prior(self) -> Prior:
        """p(theta)."""
        return Prior(self.config.prior_std, self.config.gamma_shape, self.config.gamma_rate)

    def negative_log_prior(self, theta: Adapter) -> Tensor:
        """-log p(theta) of Gaussians over the weights, summed over all layers."""
        space, prior = self.scorer.space, self.prior
        return torch.stack([space.negative_log_prior(factors, prior) for factors in theta.stacks.values()]).sum()

    def phi_optimizer(self, phi: Adapter) -> AdapterOptimizer:
        """AdamW on those tensors of phi that learn."""
        config = self.config
        return AdapterOptimizer(phi, config.learning_rate, config.scale_learning_rate, config.weight_decay)

    def theta_optimizer(self, theta: Adapter) -> AdapterOptimizer:
        """AdamW on those tensors of theta that learn."""
        config = self.config
        return AdapterOptimizer(
            theta, config.outer_learning_rate, config.outer_scale_learning_rate, config.weight_decay
        )

    def adamw_step(self, parts: Iterable[Loss], optimizer: AdapterOptimizer, rate: float) -> Loss:
        """One step down the gradient of the loss of all ``parts``, which is returned without its graph."""
        return self.backward(parts).stepped(optimizer.step(rate, self.config.max_grad_norm))

    def backward(self, parts: Iterable[Loss]) -> Loss:
        """Leave the gradient of the loss of all ``parts`` in the tensors; the loss is returned without its graph.

        A part is asked for once the one before has left its gradient, so that one graph at a time is in memory.
        """
        read: list[Loss] = []
        for part in parts:
            loss = part.further() if read else part
            loss.total.backward()
            read.append(loss.stepped(NO_NORMS))
        return combined(read)
