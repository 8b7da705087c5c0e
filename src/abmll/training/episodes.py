"""What each episode reads, examples and noise: pure functions of (seed, episode)."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
import torch

from abmll.common.config import LearningConfig
from abmll.common.errors import DataError
from abmll.language.activation_cache import ActivationCache
from abmll.language.batch import Batch
from abmll.language.encoded import Encoded
from abmll.language.encoded_store import EncodedPairs, hash_of, kept
from abmll.language.scorer import OptionScorer
from abmll.tasks import Task
from abmll.tasks.order import batches_of_episode, demonstrations, sample_seed, task_of_episode, union_batches
from abmll.tasks.packed import PackedExamples


class Episodes:
    """The episodes of a training run over ``tasks``, which are taken in the order of their names.

    With ``episodes="task"`` an episode's batches come from one task, with ``"union"`` from all tasks shuffled together.
    With ``shown`` every question of an episode stands behind the same so many other training examples of its task, or as
    many as there are; ``left_out`` counts those that did not fit into the model's context.
    A held-out query batch ends every episode where the rule ``needs_query``.
    Raises ``DataError`` for tasks that cannot be trained on: two of one name, examples without an answer, too few
    examples for an episode.
    """

    def __init__(
        self,
        scorer: OptionScorer,
        tasks: Sequence[Task],
        config: LearningConfig,
        draws_from: Literal["task", "union"],
        cache: ActivationCache | None = None,
        needs_query: bool = False,
        shown: int = 0,
    ) -> None:
        self.scorer = scorer
        self.tasks = sorted(tasks, key=lambda task: task.name)
        self.examples = [task.train for task in self.tasks]
        self.config = config
        self.draws_from: Literal["task", "union"] = draws_from
        self.cache = cache
        self.num_batches = config.inner_steps + needs_query
        self.shown = shown
        self.left_out = 0
        self._refuse_unusable()
        self.encoded = EncodedPairs([], [])

    def name(self, episode: int) -> str:
        """The name of the episodeed, or ``union``."""
        return self.tasks[self._task(episode)].name if self.draws_from == "task" else "union"

    def examples_of(self, episode: int) -> list[list[tuple[int, int]]]:
        """Pairs (task, training example) of each of the episode's batches; a query batch comes last."""
        config, size = self.config, self.config.per_device_train_batch_size
        if self.draws_from == "union":
            return union_batches(config.seed, episode, [len(one) for one in self.examples], size, self.num_batches)
        task = self._task(episode)
        batches = batches_of_episode(config.seed, episode, len(self.examples[task]), size, self.num_batches)
        return [[(task, index) for index in batch] for batch in batches]

    def prepare(self, episodes: int) -> None:
        """Encode what the first ``episodes`` read, or find it on the disk: see ``kept``.

        An example that cannot be used is refused now, not in mid-run. Raises ``DataError`` as the encoder's
        ``encode_all``, with the file the example comes from.
        """
        drawn = self._drawn(episodes)
        count = sum(map(len, drawn))
        self.encoded = EncodedPairs(drawn, kept(lambda: self._key(drawn), lambda: self._encode_drawn(drawn), count))

    def batches(self, episode: int) -> Iterator[Batch]:
        """The episode's batches, each made when it is asked for, or so many at once where demonstrations are shown."""
        pairs_of_batches = self.examples_of(episode)
        if self.shown:
            yield from self._demonstrated(episode, [[index for _, index in pairs] for pairs in pairs_of_batches])
            return
        for pairs in pairs_of_batches:
            yield self.scorer.batch([self._encode(task, index) for task, index in pairs], self.cache)

    def _demonstrated(self, episode: int, asked: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The batches of a task's episode behind the same demonstrations, which are not read again for every batch.

        Nothing is kept of their lower_blocks after the episode: prompts like these hardly come again.
        """
        task = self._task(episode)
        examples, name, taken = self.examples[task], self.tasks[task].name, set(chain.from_iterable(asked))
        chosen = demonstrations(self.config.seed, len(examples), self.shown, taken, episode)
        shown = examples.select(chosen)
        groups = []
        for indices in asked:
            encoded, dropped = self.scorer.encoder.encode_demonstrated(examples.select(list(indices)), name, shown)
            self.left_out += dropped
            groups.append(encoded)
        yield from self.scorer.batches(groups)

    def generator(self, episode: int, step: int) -> torch.Generator:
        """The noise of one of the episode's gradient steps."""
        seed = sample_seed(self.config.seed, "noise", episode, step)
        return torch.Generator(self.scorer.device).manual_seed(seed)

    def sha256(self) -> str:
        """A hash of everything training reads of the tasks: names and training examples, in order."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for task, examples in zip(self.tasks, self.examples, strict=True):
            rows = [(example.input, example.options, example.answer) for example in examples]
            digest.update(json.dumps([task.name, rows]).encode())
        return digest.hexdigest()

    def _task(self, episode: int) -> int:
        return task_of_episode(self.config.seed, episode, len(self.tasks))

    def _encode(self, task: int, index: int) -> Encoded:
        """The example in tokens; encoded now if it was not prepared."""
        try:
            return self.encoded[task, index]
        except KeyError:
            return self.scorer.encoder.encode(self.examples[task][index], self.tasks[task].name)

    def _drawn(self, episodes: int) -> list[np.ndarray]:
        """For each task, which of its training examples the first ``episodes`` read, in order."""
        drawn = [np.zeros(len(examples), dtype=bool) for examples in self.examples]
        missing = sum(map(len, drawn))
        for episode in range(episodes):
            for task, index in chain.from_iterable(self.examples_of(episode)):
                missing -= not drawn[task][index]
                drawn[task][index] = True
            if not missing:
                break
        return [np.flatnonzero(one).astype(np.int32) for one in drawn]

    def _chosen(self, drawn: Sequence[np.ndarray]) -> Iterator[tuple[Task, PackedExamples]]:
        """Every task of which something is drawn, with those examples."""
        for task, examples, indices in zip(self.tasks, self.examples, drawn, strict=True):
            if len(indices):
                yield task, examples.select(indices.tolist())

    def _encode_drawn(self, drawn: Sequence[np.ndarray]) -> Iterator[Encoded]:
        for task, examples in self._chosen(drawn):
            try:
                yield from self.scorer.encoder.encode_all(examples, task.name)
            except DataError as error:
                raise DataError(f"{task.source}: {error}" if task.source else str(error)) from error

    def _key(self, drawn: Sequence[np.ndarray]) -> str | None:
        """A hash of everything that the tokens of these examples depend on, if the encoder can be described."""
        description = self.scorer.encoder.describe()
        if description is None:
            return None
        rows = (
            [task.name, example.input, example.options, example.answer]
            for task, examples in self._chosen(drawn)
            for example in examples
        )
        return hash_of(chain([description], rows))

    def _refuse_unusable(self) -> None:
        if not self.tasks:
            raise DataError("no training tasks; give at least one")
        for name, count in Counter(task.name for task in self.tasks).items():
            if count > 1:
                raise DataError(f"{count} training tasks are called '{name}'; give each a name of its own")
        size = self.config.per_device_train_batch_size
        for task, examples in zip(self.tasks, self.examples, strict=True):
            where = task.source or f"task '{task.name}'"
            for example in examples:
                if example.answer is None:
                    raise DataError(f"{where}: training example '{example.id}' has no answer to learn from")
            if self.draws_from == "task" and len(examples) < self.num_batches * size:
                raise DataError(
                    f"{where}: {len(examples)} training examples, but an episode takes {self.num_batches} batches of "
                    f"{size}; lower inner_steps or per_device_train_batch_size, or leave the task out"
                )
        if not any(self.examples):
            raise DataError("the training tasks have no training examples")
