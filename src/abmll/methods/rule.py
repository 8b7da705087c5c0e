"""What every learning rule is: a small object with the same few functions, in the same order, in every file.

``init`` makes the state, ``begin_visit`` opens a task, ``inner_loss`` and ``inner_step`` learn its batches,
``outer_step`` closes the visit, ``adapt`` learns an unseen task. Rules know nothing of files, clocks or progress.

Scale of the loss, everywhere: the negative log-likelihood is summed over the batch's answers, the divergence and
-log p(theta) over all that they cover, in nats; beta weighs the divergence, gamma / (number of training tasks) the
prior.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from abmll.adapter import Adapter
from abmll.config import LearningConfig
from abmll.errors import TrainingError
from abmll.language.batch import Batch
from abmll.methods.optimizer import AdapterOptimizer
from abmll.language.scorer import OptionScorer, Pass, Scores, nll


class Loss(NamedTuple):
    """One batch's loss and its unweighted terms, in nats (see the scale above); ``grad_norm`` once a step is taken."""

    total: Tensor
    nll: Tensor
    kl: Tensor
    prior: Tensor
    correct: Tensor  # number of right answers in the batch
    size: int
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


def num_correct(scores: Scores, batch: Batch) -> Tensor:
    """How many of the batch's answers have the highest score."""
    return (scores.options.argmax(-1) == batch.answers).sum()


def backward(loss: Loss) -> None:
    """Back-propagate the total. Raises ``TrainingError`` naming the first term that is not finite."""
    for term in ("nll", "kl", "prior", "total"):
        if not torch.isfinite(getattr(loss, term)):
            raise TrainingError(f"the loss term '{term}' is {float(getattr(loss, term))}; lower the learning rates")
    loss.total.backward()


def take_step(loss: Loss, optimizer: AdapterOptimizer, config: LearningConfig, rate: float) -> Loss:
    """Follow the gradient of ``loss``; returns it detached, with the gradient's norm."""
    norm = optimizer.step(rate, config.max_grad_norm)
    detached = [term.detach() if isinstance(term, Tensor) else term for term in loss]
    return Loss(*detached)._replace(grad_norm=norm)
