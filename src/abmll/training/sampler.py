"""Which task an episode takes, and which of its examples: pure functions of (seed, episode)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from abmll.tasks.order import batches_of_episode, demonstrations, task_of_episode, union_batches

Pair = tuple[int, int]  # (task, training example)


@dataclass(frozen=True)
class EpisodeSampler:
    """The order in which a training run reads its tasks' training examples.

    Args:
        seed: of the run.
        sizes: number of training examples of each task.
        batch_size: examples of a batch; fewer in an episode of a task that has fewer.
        steps: batches of an episode, one for each inner step.
        query: a held-out batch follows them, for the outer step.
        draws_from: an episode's batches come from one "task", or from the shuffled "union" of all.
    """

    seed: int
    sizes: Sequence[int]
    batch_size: int
    steps: int
    query: bool = False
    draws_from: Literal["task", "union"] = "task"

    def task(self, episode: int) -> int | None:
        """The task of an episode; None where episodes draw from the union."""
        return task_of_episode(self.seed, episode, len(self.sizes)) if self.draws_from == "task" else None

    def batches(self, episode: int) -> list[list[Pair]]:
        """The examples of each of the episode's batches; a query batch comes last."""
        task = self.task(episode)
        if task is None:
            return union_batches(self.seed, episode, self._ends, self.batch_size, self.steps + self.query)
        batches = batches_of_episode(
            self.seed, episode, self.sizes[task], self.batch_size, self.steps, query=self.query
        )
        return [[(task, index) for index in batch] for batch in batches]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each task's examples end in the union: once for all episodes, else n tasks cost n^2."""
        return np.cumsum(self.sizes)

    def demonstrations(self, episode: int, count: int) -> list[int]:
        """At most ``count`` examples of the episode's task that are in none of its batches, to be shown before them."""
        task = self.task(episode)
        assert task is not None, "an episode of the union has no task to show examples of"
        taken = {index for _, index in chain(*self.batches(episode))}
        return demonstrations(self.seed, self.sizes[task], count, taken, episode)

    def drawn(self, episodes: int) -> list[list[int]]:
        """For each task, which of its examples the first ``episodes`` read, in ascending order."""
        drawn: list[set[int]] = [set() for _ in self.sizes]
        missing = sum(self.sizes)
        for episode in range(episodes):
            for task, index in chain(*self.batches(episode)):
                missing -= index not in drawn[task]
                drawn[task].add(index)
            if not missing:
                break
        return [sorted(indices) for indices in drawn]
