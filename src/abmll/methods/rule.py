"""What every learning rule is: a small object with the same few functions, in the same order, in every file.

``init`` makes the state, ``begin_visit`` opens a task, ``inner_loss`` and ``inner_step`` learn its batches,
``outer_step`` closes the visit, ``adapt`` learns an unseen task. Rules know nothing of files, clocks or progress.

Scale of the loss, everywhere: the negative log-likelihood is summed over the batch's answers, the divergence and
-log p(theta) over all that they cover, in nats; beta weighs the divergence, gamma / (number of training tasks) the
prior.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from abmll.adapter import Adapter
from abmll.config import LearningConfig
from abmll.errors import TrainingError
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass, Scores, nll
from abmll.methods.optimizer import AdapterOptimizer


class Loss(NamedTuple):
    """One batch's loss and its unweighted terms, in nats (see the scale above); ``grad_norm`` once a step is taken."""

    total: Tensor
    nll: Tensor
    kl: Tensor
    prior: Tensor
    correct: Tensor  # number of right answers in the batch
    size: int  # examples read
    tokens: int  # tokens read, padding left out; like size, zero where no forward pass was needed
    grad_norm: float = 0.0


@dataclass
class State:
    """Global and task parameters and their optimizers; rules without the distinction hold one adapter twice."""

    theta: Adapter
    phi: Adapter
    inner: AdapterOptimizer
    outer: AdapterOptimizer | None


class Rule(Protocol):
    """A learning rule; see the module's docstring."""

    name: ClassVar[str]
    label: ClassVar[str]
    episodes: ClassVar[Literal["task", "union"]]  # a visit's batches: of one task, or of the shuffled union
    is_posterior: ClassVar[bool]  # phi has a learned standard deviation, so that prediction can sample
    is_trained: ClassVar[bool]  # meta-training changes theta
    scorer: OptionScorer
    config: LearningConfig

    def init(self, theta: Adapter) -> State:
        """The state at the start, from a fresh or a loaded theta."""
        ...

    def begin_visit(self, state: State) -> None:
        """Open the visit of a task."""
        ...

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """The loss whose gradient the inner step follows."""
        ...

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One gradient step on the task's parameters."""
        ...

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss | None:
        """What the visit teaches theta; None where the rule has nothing to do here."""
        ...

    def adapt(self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]]) -> Adapter:
        """The parameters of an unseen task after one step per batch; ``theta`` is left as it is."""
        ...


def likelihood(
    scorer: OptionScorer, config: LearningConfig, phi: Adapter, batch: Batch, how: Pass | None = None
) -> tuple[Tensor, Scores]:
    """The batch's negative log-likelihood (a scalar, nats) and the scores it comes from."""
    scores = scorer.scores(batch, phi, how)
    return nll(scores, batch.answers, config.loss), scores


def read_loss(nll: Tensor, kl: Tensor, prior: Tensor, scores: Scores, batch: Batch) -> Loss:
    """The terms of one forward pass over ``batch``; the total is the negative log-likelihood alone."""
    correct = (scores.options.argmax(-1) == batch.answers).sum()
    return Loss(nll, nll, kl, prior, correct, len(batch.answers), int(batch.mask.sum()))


def backward(loss: Loss) -> None:
    """Back-propagate the total. Raises ``TrainingError`` naming the first term that is not finite."""
    for term in ("nll", "kl", "prior", "total"):
        value = float(getattr(loss, term).detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss term '{term}' is {value}; lower the learning rates")
    loss.total.backward()


def take_step(loss: Loss, optimizer: AdapterOptimizer, config: LearningConfig, rate: float) -> Loss:
    """Follow the gradient of ``loss``; returns it detached, with the gradient's norm."""
    norm = optimizer.step(rate, config.max_grad_norm)
    return loss._replace(
        total=loss.total.detach(), nll=loss.nll.detach(), kl=loss.kl.detach(), prior=loss.prior.detach(), grad_norm=norm
    )


def follow(rule: Rule, state: State, batches: Iterable[tuple[Batch, torch.Generator]]) -> Adapter:
    """One inner step per batch, at the full learning rate; returns phi. ``TrainingError`` names the step."""
    for step, (batch, generator) in enumerate(batches, start=1):
        try:
            rule.inner_step(state, batch, generator, rate=1.0)
        except TrainingError as error:
            raise TrainingError(f"step {step}: {error}") from error
    for name, tensor in state.phi.named_tensors():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"phi's {name} is not finite after the last step; lower the learning rates")
    return state.phi.requires_grad_(False)
