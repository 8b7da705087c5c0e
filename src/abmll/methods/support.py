"""The labelled examples of an unseen task, and the batches of them that a rule learns from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from abmll.language.activation_cache import ActivationCache
from abmll.language.batch import Batch
from abmll.language.bucket import Bucket
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.methods.loss import Loss
from abmll.tasks import Example
from abmll.tasks.order import adaptation_batches, demonstrations, sample_seed


@dataclass
class Support:
    """The examples that a rule adapts to, in tokens as ``encoded``, and how it reads them.

    A rule that learns several adapters has several learners, numbered from 0. Each passes over the examples in an
    order and with noise of its own, which ``seed`` determines, until ``steps`` batches are read.

    ``num_shown`` other examples are put before the questions of every batch; only then are ``examples`` (as text) and
    ``task_name`` needed. ``cache`` keeps the activations below the adapters. ``on_batch`` is called for every batch
    read. ``losses`` are those of the first learner's steps, in order: the rule records them as it takes the steps.
    """

    scorer: OptionScorer
    encoded: Sequence[Encoded]
    steps: int
    batch_size: int
    seed: int = 0
    examples: Sequence[Example] = ()
    task_name: str = ""
    num_shown: int = 0
    cache: ActivationCache | None = None
    on_batch: Callable[[], object] = lambda: None
    losses: list[Loss] = field(default_factory=list)

    def order(self, learner: int = 0) -> list[list[int]]:
        """Which examples each of a learner's batches holds."""
        size = min(self.batch_size, len(self.encoded))
        return adaptation_batches(self._seed(learner), len(self.encoded), size, self.steps) if self.steps else []

    def batches(self, learner: int = 0) -> Iterator[tuple[Batch, torch.Generator]]:
        """A learner's batches, each made when it is asked for, with the generator of that step's noise."""
        for step, indices in enumerate(self.order(learner)):
            seed = sample_seed(self._seed(learner), "adaptation noise", step)
            yield self.batch(indices), torch.Generator(self.scorer.device).manual_seed(seed)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples at these indices as a batch."""
        self.on_batch()
        if not self.num_shown:
            batch = self.scorer.batch([self.encoded[index] for index in indices], self.cache)
            return batch if self.scorer.compilation is None else replace(batch, bucket=self._bucket)
        others = demonstrations(self.seed, len(self.examples), self.num_shown, indices, *indices)
        asked, shown = ([self.examples[index] for index in chosen] for chosen in (indices, others))
        return self.scorer.batch(self.scorer.encoder.encode_demonstrated(asked, self.task_name, shown)[0])

    @cached_property
    def _bucket(self) -> Bucket:
        """One for all batches, so that all compiled steps have one shape."""
        return Bucket.of_any(self.encoded, min(self.batch_size, len(self.encoded)))

    def answers(self) -> list[tuple[Sequence[int], torch.Tensor]]:
        """Each batch of the first learner, with the log-probabilities (N, C) that its options had before its step.

        Nothing of a rule that takes no step.
        """
        steps = zip(self.order(), self.losses, strict=False)
        return [(indices, loss.options) for indices, loss in steps if loss.options is not None]

    def _seed(self, learner: int) -> int:
        return sample_seed(self.seed, "learner", learner) if learner else self.seed
