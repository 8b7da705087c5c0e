"""What an episode of a training run reads, as batches in tokens, and the noise of its steps."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter

import torch

from abmll.language.activation_cache import ActivationCache
from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.tasks import Task
from abmll.tasks.order import sample_seed
from abmll.training.sampler import EpisodeSampler, Pair


class Episodes:
    """The batches of each episode, made when they are asked for.

    Args:
        tasks: those whose training examples ``sampler`` counts, in the same order.
        cache: keeps the lower blocks' activations of the examples.
        shown: so many demonstrations stand before every question of an episode: other training examples of its task,
            the same ones all through the episode, fewer where the task has no more. ``left_out`` counts those that did
            not fit into the model's context.
        part_size: examples that one pass reads at most; a batch of more has its other ones in ``Batch.rest``.
    """

    def __init__(
        self,
        scorer: OptionScorer,
        tasks: Sequence[Task],
        sampler: EpisodeSampler,
        cache: ActivationCache | None = None,
        shown: int = 0,
        part_size: int | None = None,
    ) -> None:
        self.scorer = scorer
        self.tasks = tasks
        self.sampler = sampler
        self.cache = cache
        self.shown = shown
        self.part_size = part_size
        self.left_out = 0

    def name(self, episode: int) -> str:
        """The name of the episode's task, or ``union``."""
        task = self.sampler.task(episode)
        return "union" if task is None else self.tasks[task].name

    def encoded(self, episode: int) -> Iterator[list[Encoded]]:
        """The examples of each of the episode's batches in tokens, without demonstrations; a query batch comes last."""
        for pairs in self.sampler.batches(episode):
            yield [encoded for task, some in groupby(pairs, itemgetter(0)) for encoded in self._encode(task, some)]

    def batches(self, episode: int) -> Iterator[Batch]:
        """The episode's batches, each made when it is asked for, or many at once where demonstrations are shown."""
        if self.shown:
            groups = [self._cut(encoded) for encoded in self._demonstrated(episode)]
            parts = self.scorer.batches([part for group in groups for part in group])
            yield from (_whole(islice(parts, len(group))) for group in groups)
        else:
            for encoded in self.encoded(episode):
                yield _whole(self.scorer.batch(part, self.cache) for part in self._cut(encoded))

    def generator(self, episode: int, step: int) -> torch.Generator:
        """The noise of one of the episode's gradient steps."""
        seed = sample_seed(self.sampler.seed, "noise", episode, step)
        return torch.Generator(self.scorer.device).manual_seed(seed)

    def _cut(self, encoded: list[Encoded]) -> list[list[Encoded]]:
        """The examples of a batch by the passes that read them."""
        size = self.part_size or len(encoded)
        return [encoded[start : start + size] for start in range(0, len(encoded), size)]

    def _encode(self, task: int, pairs: Iterator[Pair]) -> list[Encoded]:
        one = self.tasks[task]
        return self.scorer.encode([one.train[index] for _, index in pairs], one.name)

    def _demonstrated(self, episode: int) -> Iterator[list[Encoded]]:
        """The examples of each batch behind the episode's demonstrations; such prompts hardly come again."""
        chosen = self.sampler.demonstrations(episode, self.shown)
        for pairs in self.sampler.batches(episode):
            task = self.tasks[pairs[0][0]]
            asked, shown = ([task.train[index] for index in part] for part in ([i for _, i in pairs], chosen))
            encoded, dropped = self.scorer.encoder.encode_demonstrated(asked, task.name, shown)
            self.left_out += dropped
            yield encoded


def _whole(parts: Iterable[Batch]) -> Batch:
    """One batch of its parts."""
    first, *rest = parts
    return replace(first, rest=tuple(rest)) if rest else first
