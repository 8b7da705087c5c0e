"""Plain LoRA in the same loop: structured (task after task), regular (shuffled union), and not trained at all.

One set of mean factors, no posterior, no reset: theta and phi are the same adapter. In the paper's terms structured
LoRA takes K consecutive steps per task, regular LoRA shuffles all tasks' examples, and the pretrained model meets an
unseen task with a fresh adapter.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch

from abmll.common.config import LearningConfig
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer
from abmll.methods.loss import Loss, Watch, unwatched
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import State, follow, likelihood, read_loss, take_step
from abmll.methods.support import Support


class StructuredLora:
    """K steps on each task in turn, nothing reset in between."""

    name: ClassVar[str] = "structured-lora"
    label: ClassVar[str] = "Structured LoRA"
    draws_from: ClassVar[Literal["task", "union"]] = "task"
    is_posterior: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True
    needs_query: ClassVar[bool] = False
    base_method: ClassVar[str | None] = None
    settings_read: ClassVar[tuple[str, ...]] = ()
    space: ClassVar[str | None] = None
    demonstrations: ClassVar[bool] = False
    has_calibration: ClassVar[bool] = False

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        self.scorer = scorer
        self.config = config

    def init(self, theta: Adapter) -> State:
        """One adapter in both roles; only its mean factors learn."""
        adapter = theta.clone()
        for tensor in adapter.mean_tensors():
            tensor.requires_grad_()
        inner = AdapterOptimizer(adapter, self.config.learning_rate, 0.0, self.config.weight_decay)
        return State(adapter, adapter, inner, None)

    def begin_episode(self, state: State, done: float) -> None:
        """Nothing: the adapter goes on from the task before, its AdamW moments too unless they are to be reset."""
        assert state.inner is not None
        if self.config.moments == "reset":
            state.inner.reset()

    def inner_loss(self, state: State, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at the mean."""
        nll, scores = likelihood(self.scorer, self.config, state.phi, batch)
        zero = torch.zeros_like(nll)
        return read_loss(nll, zero, zero, scores, batch)

    def inner_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss:
        """One AdamW step on the adapter."""
        assert state.inner is not None
        loss = self.inner_loss(state, batch, generator)
        loss.total.backward()
        return take_step(loss, state.inner, self.config, rate)

    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> Loss | None:
        """A held-out query batch is one more batch to learn from; the last inner batch has been learned already."""
        return self.inner_step(state, batch, generator, rate) if self.config.outer_batch == "query" else None

    def adapt(
        self, theta: Adapter, batches: Iterable[tuple[Batch, torch.Generator]], watch: Watch = unwatched
    ) -> Adapter:
        """The adapter fine-tuned on an unseen task: fresh optimizer, one step per batch."""
        return follow(self, self.init(theta), batches, watch)


class RegularLora(StructuredLora):
    """The same steps on batches from the shuffled union of all tasks."""

    name: ClassVar[str] = "regular-lora"
    label: ClassVar[str] = "Regular LoRA"
    draws_from: ClassVar[Literal["task", "union"]] = "union"


class PretrainedAdapted(StructuredLora):
    """No meta-training: an unseen task is learned from a fresh adapter, that is, from the pretrained model."""

    name: ClassVar[str] = "pretrained-adapted"
    label: ClassVar[str] = "Pretrained, adapted"
    is_trained: ClassVar[bool] = False


class Unchanged:
    """What a rule mixes in that takes no gradient step on an unseen task."""

    def num_batches(self, steps: int, size: int) -> int:
        """None is read."""
        return 0

    def fit(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """Theta as it is."""
        return (theta.clone(),)


class Pretrained(Unchanged, PretrainedAdapted):
    """The pretrained model as it is: zero-shot."""

    name: ClassVar[str] = "pretrained"
    label: ClassVar[str] = "Pretrained"
