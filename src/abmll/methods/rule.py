"""What every learning rule is: a small object with the same few functions, in the same order, in every file.

``init`` makes the state, ``begin_episode`` opens a task, ``inner_loss`` and ``inner_step`` learn its batches,
``outer_step`` closes the episode, ``adapt`` learns an unseen task. Rules know nothing of files, clocks or progress.

Scale of the loss, everywhere: the negative log-likelihood is summed over the batch's answers, the divergence and
-log p(theta) over all that they cover, in nats; beta weighs the divergence, gamma / (number of training tasks) the
prior.

A step waits for no number: on an accelerator it is only queued. What came of an episode's steps is read and checked by
whoever keeps their result, with ``read_steps``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer, Pass, Scores, nll
from abmll.methods.loss import Loss, Watch, read_steps, unwatched
from abmll.methods.optimizer import AdapterOptimizer

READ_EVERY = 50  # steps of an adaptation, so that a long one that breaks early does not go on to its end


@dataclass
class State:
    """Global and task parameters and their optimizers; rules without the distinction hold one adapter twice.

    Only theta and the optimizers' moments outlive a checkpoint: the rest belongs to one episode, or (``gathered``) to the
    episodes between two outer steps, and checkpoints are made after an outer step only.
    """

    theta: Adapter
    phi: Adapter
    inner: AdapterOptimizer | None  # None: phi takes plain gradient steps
    outer: AdapterOptimizer | None  # None: no gradient moves theta
    done: float = 0.0  # share of the training's episodes before this one
    tied: bool = False  # phi is a function of theta, and the outer gradient runs through its steps
    support: list[Batch] = field(default_factory=list)  # what the inner steps have read, where the outer reads it again
    gathered: int = 0  # episodes whose gradient theta holds and no step has used yet


class Rule(Protocol):
    """A learning rule; see the module's docstring."""

    name: ClassVar[str]
    label: ClassVar[str]
    draws_from: ClassVar[Literal["task", "union"]]  # an episode's batches: of one task, or of the shuffled union
    is_posterior: ClassVar[bool]  # phi has a learned standard deviation, so that prediction can sample
    is_trained: ClassVar[bool]  # meta-training changes theta
    needs_query: ClassVar[bool]  # an episode ends with a held-out batch, whatever ``outer_batch`` says
    base_method: ClassVar[str | None]  # not meta-trained: an unseen task starts from the theta of that rule's run
    settings_read: ClassVar[tuple[str, ...]]  # what of ``ContinueConfig`` it reads
    space: ClassVar[str | None]  # the Gaussian space that it needs; None: any
    demonstrations: ClassVar[bool]  # prompts hold labelled examples
    has_calibration: ClassVar[bool]  # theta and phi hold a temperature and option biases
    scorer: OptionScorer
    config: LearningConfig

    def init(self, theta: Adapter) -> State:
        """The state at the start, from a fresh or a loaded theta."""
        ...

    def begin_episode(self, state: State, done: float) -> None:
        """Open the episode of a task; ``done`` is the share of the training's episodes before it, in [0, 1)."""
        ...

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """The loss whose gradient the inner step follows."""
        ...

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One gradient step on the task's parameters."""
        ...

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss | None:
        """What the episode teaches theta; None where the rule has nothing to do here."""
        ...

    def adapt(
        self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]], watch: Watch = unwatched
    ) -> Adapter:
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
    options = torch.log_softmax(scores.options.detach(), -1)
    return Loss(nll, nll, kl, prior, correct, len(batch.answers), batch.num_tokens, options=options)


def detach(loss: Loss, norms: Mapping[str, Tensor]) -> Loss:
    """The loss without its graph, with the norms of the gradient that it gave."""
    total, nll, kl, prior = (term.detach() for term in loss[:4])
    return loss._replace(total=total, nll=nll, kl=kl, prior=prior, grad_norms=norms)


def take_step(loss: Loss, optimizer: AdapterOptimizer, config: LearningConfig, rate: float) -> Loss:
    """Follow the gradient that ``loss.total.backward()`` left; returns the loss detached, with the gradient's norms."""
    return detach(loss, optimizer.step(rate, config.max_grad_norm))


def follow(
    rule: Rule, state: State, batches: Iterable[tuple[Batch, torch.Generator]], watch: Watch = unwatched
) -> Adapter:
    """One inner step per batch, at the full learning rate; returns phi. Raises ``TrainingError`` as ``read_steps``."""
    unread: dict[str, Loss] = {}
    for step, (batch, generator) in enumerate(batches, start=1):
        loss = unread[f"step {step}"] = rule.inner_step(state, batch, generator, rate=1.0)
        watch(loss)
        if step % READ_EVERY == 0:
            read_steps(unread, "phi", state.phi)
            unread.clear()
    read_steps(unread, "phi", state.phi)
    return state.phi.requires_grad_(False)
