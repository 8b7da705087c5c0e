"""A paired bootstrap over tasks and examples: how far the differences between methods may be chance.

A replicate draws as many tasks as there are, with replacement, and within every task drawn as many of its examples,
with replacement too. All methods get the same draws, and an example brings its answers under all seeds along, so that
what methods and seeds have in common cancels. Drawing examples below tasks counts their noise once more than a draw of
tasks alone would: the intervals are rather too wide than too narrow (Davison and Hinkley 1997, section 3.8).

Metrics: the means over tasks of accuracy, NLL, Brier score and ECE (15 equal-width bins, as in ``metrics``), and the
ECE of all examples together. Each is computed for every seed and then averaged over seeds.

Intervals are the draws' 2.5 % and 97.5 % quantiles. Those of calibration errors are moved so that the draws' mean
lies at the observed value: a resampled calibration error is larger on average (noise never cancels in it), which says
nothing about the truth. A p-value is twice the share of draws, moved likewise, on the rarer side of zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from abmll.experiments.metrics import Floats, outcomes
from abmll.tasks.order import sample_seed

NUM_BINS = 15
METRICS = ("accuracy", "nll", "brier", "ece", "pooled_ece")
CALIBRATION = ("ece", "pooled_ece")
REPLICATES = 2000
_ADDITIVE = 3  # accuracy, nll and brier, in this order


class Sample(NamedTuple):
    """One task's answers: n examples, M methods, S seeds."""

    features: Floats  # (n, M, S, 3 + NUM_BINS): correct, nll, brier; correct - confidence in the bin it falls in
    present: Floats  # (n, S): 1 where the example was asked under that seed


class Replicates(NamedTuple):
    """Metrics of all methods: as observed, and in every replicate."""

    methods: tuple[str, ...]
    observed: dict[str, Floats]  # (M,)
    drawn: dict[str, Floats]  # (R, M)


class Interval(NamedTuple):
    """An observed value, a 95 % interval, and for differences the p-value against zero."""

    value: float
    low: float
    high: float
    p: float | None = None


def make_sample(rows: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> Sample:
    """One task's ``Sample`` of prediction rows (with ``id``, ``probs``, ``answer``) by method and seed.

    Every method must have every seed, and under one seed the same examples; raises ``ValueError`` otherwise.
    """
    first = next(iter(rows.values()))
    asked = {seed: [row["id"] for row in own] for seed, own in first.items()}
    ids = sorted({name for names in asked.values() for name in names})
    place = {name: index for index, name in enumerate(ids)}
    features = np.zeros((len(ids), len(rows), len(first), _ADDITIVE + NUM_BINS))
    present = np.zeros((len(ids), len(first)))
    for s, (seed, names) in enumerate(asked.items()):
        present[[place[name] for name in names], s] = 1.0
        for m, by_seed in enumerate(rows.values()):
            own = [row["id"] for row in by_seed[seed]]
            if sorted(own) != sorted(names):
                raise ValueError("the methods were not asked the same examples under every seed")
            features[[place[name] for name in own], m, s] = _features(by_seed[seed])
    return Sample(features, present)


def _features(rows: Sequence[Mapping[str, Any]]) -> Floats:
    each = outcomes([row["probs"] for row in rows], [row["answer"] for row in rows])
    bins = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], each.confidence, side="left")
    gaps = np.zeros((len(rows), NUM_BINS))
    gaps[np.arange(len(rows)), bins] = each.correct - each.confidence
    return np.concatenate([np.stack([each.correct, each.nll, each.brier], axis=1), gaps], axis=1)


def bootstrap(
    methods: Sequence[str], samples: Sequence[Sample], seed: int = 0, replicates: int = REPLICATES
) -> Replicates:
    """The metrics of ``methods`` on the samples of the tasks, observed and resampled; ``seed`` determines the draws."""
    rng = np.random.Generator(np.random.Philox(sample_seed(seed, "bootstrap")))
    drawn = rng.integers(len(samples), size=(replicates, len(samples)))
    observed = _Sums(1, samples)
    resampled = _Sums(replicates, samples)
    for task, sample in enumerate(samples):
        count = len(sample.features)
        observed.add(np.zeros(1, dtype=np.int64), np.ones((1, count)), sample)
        replicate, _ = np.nonzero(drawn == task)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=len(replicate)).astype(np.float64)
        resampled.add(replicate, weights, sample)
    first = {name: values[0] for name, values in observed.metrics().items()}
    return Replicates(tuple(methods), first, resampled.metrics())


class _Sums:
    """Sums over the tasks drawn, for each of R replicates."""

    def __init__(self, replicates: int, samples: Sequence[Sample]) -> None:
        _, methods, seeds, width = samples[0].features.shape
        self.tasks = np.zeros((replicates, seeds))  # tasks with an example under that seed
        self.means = np.zeros((replicates, methods, seeds, _ADDITIVE + 1))  # per task: the additive metrics, and ECE
        self.pooled = np.zeros((replicates, methods, seeds, width))
        self.sizes = np.zeros((replicates, seeds))

    def add(self, replicate: NDArray[np.int64], weights: Floats, sample: Sample) -> None:
        """Draws of one task: the replicate of each (K,), and how often each example was drawn (K, n)."""
        sums = np.tensordot(weights, sample.features, axes=1)  # (K, M, S, F)
        sizes = weights @ sample.present  # (K, S)
        safe = np.where(sizes == 0, 1.0, sizes)[:, None, :]
        ece = np.abs(sums[..., _ADDITIVE:]).sum(-1) / safe
        per_task = np.concatenate([sums[..., :_ADDITIVE] / safe[..., None], ece[..., None]], axis=-1)
        np.add.at(self.tasks, replicate, (sizes > 0).astype(np.float64))
        np.add.at(self.means, replicate, per_task)
        np.add.at(self.pooled, replicate, sums)
        np.add.at(self.sizes, replicate, sizes)

    def metrics(self) -> dict[str, Floats]:
        """Each of ``METRICS`` (R, M)."""
        means = (self.means / self.tasks[:, None, :, None]).mean(2)
        pooled_ece = (np.abs(self.pooled[..., _ADDITIVE:]).sum(-1) / self.sizes[:, None, :]).mean(2)
        return {name: means[..., k] for k, name in enumerate(METRICS[:-1])} | {"pooled_ece": pooled_ece}


def interval(replicates: Replicates, metric: str, method: str) -> Interval:
    """The 95 % interval of one method's metric; a metric is never below zero."""
    index = replicates.methods.index(method)
    observed = float(replicates.observed[metric][index])
    low, high = np.quantile(_settled(metric, observed, replicates.drawn[metric][:, index]), [0.025, 0.975])
    return Interval(observed, max(float(low), 0.0), float(high))


def difference(replicates: Replicates, metric: str, method: str, reference: str) -> Interval:
    """``method`` minus ``reference``, with its interval and p-value."""
    one, other = replicates.methods.index(method), replicates.methods.index(reference)
    observed = float(replicates.observed[metric][one] - replicates.observed[metric][other])
    drawn = _settled(metric, observed, replicates.drawn[metric][:, one] - replicates.drawn[metric][:, other])
    low, high = np.quantile(drawn, [0.025, 0.975])
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Interval(observed, float(low), float(high), min(1.0, 2 * (1 + rarer) / (1 + len(drawn))))


def _settled(metric: str, observed: float, drawn: Floats) -> Floats:
    """The draws, without what resampling adds to a calibration error."""
    return drawn - drawn.mean() + observed if metric in CALIBRATION else drawn
