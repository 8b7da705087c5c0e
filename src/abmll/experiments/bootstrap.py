"""A paired bootstrap over tasks and examples of the pooled calibration error, which is no mean over tasks.

A replicate draws as many tasks as there are, with replacement, and within every task drawn as many of its examples,
with replacement too. All methods get the same draws, and an example brings its answers under all seeds along, so that
what methods and seeds have in common cancels (Davison and Hinkley 1997, section 3.8). The error is that of all examples
together (15 equal-width bins, as in ``metrics``), computed for every seed and then averaged over seeds.

Intervals are the draws' 2.5 % and 97.5 % quantiles, moved so that the draws' mean lies at the observed value: a
resampled calibration error is larger on average (noise never cancels in it), which says nothing about the truth. A
p-value is twice the share of draws, moved likewise, on the rarer side of zero.

A few tasks are too few to draw from: below ``MIN_TASKS`` there should be no interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from abmll.experiments.metrics import Floats, outcomes
from abmll.experiments.statistics import Interval
from abmll.tasks.order import sample_seed

NUM_BINS = 15
MIN_TASKS = 5  # with two, and tasks that differ, the 95 % interval of a difference covers .7 (docs/log.md)
REPLICATES = 2000


class Sample(NamedTuple):
    """One task's answers: n examples, M methods, S seeds."""

    gaps: Floats  # (n, M, S, NUM_BINS): correct - confidence in the bin that it falls in
    present: Floats  # (n, S): 1 where the example was asked under that seed


class Replicates(NamedTuple):
    """The pooled calibration error of all methods: as observed, and in every replicate."""

    methods: tuple[str, ...]
    observed: Floats  # (M,)
    drawn: Floats  # (R, M)


def make_sample(rows: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> Sample:
    """One task's ``Sample`` of prediction rows (with ``id``, ``probs``, ``answer``) by method and seed.

    Every method must have every seed, and under one seed the same examples; raises ``ValueError`` otherwise.
    """
    first = next(iter(rows.values()))
    asked = {seed: [row["id"] for row in own] for seed, own in first.items()}
    ids = sorted({name for names in asked.values() for name in names})
    place = {name: index for index, name in enumerate(ids)}
    gaps = np.zeros((len(ids), len(rows), len(first), NUM_BINS))
    present = np.zeros((len(ids), len(first)))
    for s, (seed, names) in enumerate(asked.items()):
        present[[place[name] for name in names], s] = 1.0
        for m, by_seed in enumerate(rows.values()):
            own = [row["id"] for row in by_seed[seed]]
            if sorted(own) != sorted(names):
                raise ValueError("the methods were not asked the same examples under every seed")
            gaps[[place[name] for name in own], m, s] = _gaps(by_seed[seed])
    return Sample(gaps, present)


def _gaps(rows: Sequence[Mapping[str, Any]]) -> Floats:
    each = outcomes([row["probs"] for row in rows], [row["answer"] for row in rows])
    bins = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], each.confidence, side="left")
    gaps = np.zeros((len(rows), NUM_BINS))
    gaps[np.arange(len(rows)), bins] = each.correct - each.confidence
    return gaps


def bootstrap(
    methods: Sequence[str], samples: Sequence[Sample], seed: int = 0, replicates: int = REPLICATES
) -> Replicates:
    """The error of ``methods`` on the samples of the tasks, observed and resampled; ``seed`` determines the draws."""
    rng = np.random.Generator(np.random.Philox(sample_seed(seed, "bootstrap")))
    drawn = rng.integers(len(samples), size=(replicates, len(samples)))
    observed = _Sums(1, samples)
    resampled = _Sums(replicates, samples)
    for task, sample in enumerate(samples):
        count = len(sample.gaps)
        observed.add(np.zeros(1, dtype=np.int64), np.ones((1, count)), sample)
        replicate, _ = np.nonzero(drawn == task)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=len(replicate)).astype(np.float64)
        resampled.add(replicate, weights, sample)
    return Replicates(tuple(methods), observed.errors()[0], resampled.errors())


class _Sums:
    """Sums over the tasks drawn, for each of R replicates."""

    def __init__(self, replicates: int, samples: Sequence[Sample]) -> None:
        _, methods, seeds, width = samples[0].gaps.shape
        self.gaps = np.zeros((replicates, methods, seeds, width))
        self.sizes = np.zeros((replicates, seeds))

    def add(self, replicate: NDArray[np.int64], weights: Floats, sample: Sample) -> None:
        """Draws of one task: the replicate of each (K,), and how often each example was drawn (K, n)."""
        np.add.at(self.gaps, replicate, np.tensordot(weights, sample.gaps, axes=1))
        np.add.at(self.sizes, replicate, weights @ sample.present)

    def errors(self) -> Floats:
        """(R, M): the mean over seeds."""
        return (np.abs(self.gaps).sum(-1) / self.sizes[:, None, :]).mean(2)


def interval(replicates: Replicates, method: str) -> Interval:
    """The 95 % interval of one method's error, which is never below zero."""
    index = replicates.methods.index(method)
    observed = float(replicates.observed[index])
    low, high = np.quantile(_settled(observed, replicates.drawn[:, index]), [0.025, 0.975])
    return Interval(observed, max(float(low), 0.0), float(high))


def difference(replicates: Replicates, method: str, reference: str) -> Interval:
    """``method`` minus ``reference``, with its interval and p-value."""
    one, other = replicates.methods.index(method), replicates.methods.index(reference)
    observed = float(replicates.observed[one] - replicates.observed[other])
    drawn = _settled(observed, replicates.drawn[:, one] - replicates.drawn[:, other])
    low, high = np.quantile(drawn, [0.025, 0.975])
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Interval(observed, float(low), float(high), min(1.0, 2 * (1 + rarer) / (1 + len(drawn))))


def _settled(observed: float, drawn: Floats) -> Floats:
    """The draws, without what resampling adds to a calibration error."""
    return drawn - drawn.mean() + observed
