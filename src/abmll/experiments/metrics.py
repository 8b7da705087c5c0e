"""How good, and how well calibrated, predicted probabilities are: pure numpy, float64, no files and no torch.

A task's predictions are ``probs`` (one array of C_i option probabilities per example; C_i may differ) and ``answers``
(N indices of the correct option). Everything is computed over **all examples of a task at once**: a calibration error
averaged over single examples or batches is a different number (see `mean_abs_confidence_gap` below).

- *Confidence* is the largest probability; where several options share it, the first of them is the prediction.
- *Bins* are (lower, upper], the first one closed on both sides, so a confidence of exactly 1 falls in the last bin.
  A bin without examples contributes nothing. Equal-mass bins have their edges at observed confidences; equal
  confidences are never split between bins, so the result does not depend on the order of the examples.
- *Ties in confidence* count in AUROC as one half, and in AURC with the expectation over their orderings.
- A probability of zero for the correct answer costs -log(2.2e-308) = 708 nats, not infinity.

Values, in the order of `METRICS`: accuracy; nll in nats; brier, the squared error summed over options (0 to 2); ece
(15 equal-width bins) and ece_equal_mass (10 bins), after Naeini et al. 2015 and Guo et al. 2017, both of which chance
makes too large where examples are few; squared_ce (15 equal-width bins), after Kumar et al. 2019, which it does not;
aurc, the mean error rate over all coverages (Geifman and El-Yaniv 2017); auroc of confidence as a score for being
correct, None where all or none are correct; mean_abs_confidence_gap, the mean of |confidence - correct|, which some
papers call a calibration error: it is not one, since a perfectly calibrated model does not reach zero.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abmll.common.errors import DataError

METRICS = (
    "accuracy",
    "nll",
    "brier",
    "ece",
    "ece_equal_mass",
    "squared_ce",
    "aurc",
    "auroc",
    "mean_abs_confidence_gap",
)
SUM_TOLERANCE = 1e-3
Floats = NDArray[np.float64]


class Outcomes(NamedTuple):
    """What the metrics need of each example; five arrays of shape (N,)."""

    confidence: Floats
    correct: Floats  # 1.0 where the prediction is right, else 0.0
    nll: Floats
    brier: Floats
    chance: Floats  # 1 / C_i


class Bins(NamedTuple):
    """A reliability diagram; arrays of shape (num_bins,), with NaN as the mean of an empty bin."""

    lower: Floats
    upper: Floats
    size: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


class Predictions(NamedTuple):
    """One task's predictions: probs, N arrays (C_i,); answers (N,); answer_texts, the correct options' texts (N,)."""

    probs: Sequence[ArrayLike]
    answers: Sequence[int]
    answer_texts: Sequence[str] | None = None


def outcomes(probs: Sequence[ArrayLike], answers: Sequence[int]) -> Outcomes:
    """Confidence, correctness, NLL, Brier score and chance of each example.

    Half-precision tensors: convert with ``.float()``, and take the softmax in fp32 at least; probabilities rounded to
    bf16 miss a sum of 1 and are refused. Raises DataError where there is no example, where lengths differ, an answer
    is out of range, or probabilities are negative, not finite, or off a sum of 1 by more than 1e-3. They are never
    renormalised.
    """
    if len(probs) != len(answers):
        raise DataError(f"{len(probs)} predictions but {len(answers)} answers; give one answer for each prediction")
    if not len(probs):
        raise DataError("no predictions to evaluate; give at least one example")
    return Outcomes(*np.array([_outcome(i, *pair) for i, pair in enumerate(zip(probs, answers, strict=True))]).T)


def _outcome(index: int, probs: ArrayLike, answer: int) -> tuple[float, ...]:
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim != 1 or not p.size:
        raise DataError(f"example {index}: probabilities of shape {p.shape}; give one number for each option")
    # written so that NaN fails too
    if not (np.all(p >= 0) and abs(p.sum() - 1) <= SUM_TOLERANCE):
        raise DataError(
            f"example {index}: probabilities must be non-negative and sum to 1 within {SUM_TOLERANCE}; "
            f"their smallest is {p.min():.6g}, their sum {p.sum():.6g}"
        )
    if not 0 <= answer < p.size:
        raise DataError(f"example {index}: answer {answer} is not an index of its {p.size} options (0 to {p.size - 1})")
    one_hot = np.zeros_like(p)
    one_hot[answer] = 1
    nll = -np.log(max(p[answer], np.finfo(np.float64).tiny))
    return p.max(), float(p.argmax() == answer), nll, ((p - one_hot) ** 2).sum(), 1 / p.size


def reliability_bins(confidence: Floats, correct: Floats, num_bins: int = 15, equal_mass: bool = False) -> Bins:
    """Size, mean confidence and accuracy of each confidence bin; see the module's text for edges and ties."""
    edges = np.linspace(0, 1, num_bins + 1)
    if equal_mass:
        # the ceil(k N / num_bins)-th smallest confidence, in integers: a rounded quantile may be off by one example
        rank = -(-np.arange(1, num_bins) * len(confidence) // num_bins)
        edges[1:-1] = np.sort(confidence)[rank - 1]
    # side="left" makes bins (lower, upper]; comparing with the inner edges alone leaves no confidence outside
    bin_of = np.searchsorted(edges[1:-1], confidence, side="left")
    size = np.bincount(bin_of, minlength=num_bins)
    divisor = np.where(size == 0, np.nan, size)
    return Bins(
        lower=edges[:-1],
        upper=edges[1:],
        size=size,
        confidence=np.bincount(bin_of, weights=confidence, minlength=num_bins) / divisor,
        accuracy=np.bincount(bin_of, weights=correct, minlength=num_bins) / divisor,
    )


def calibration_error(bins: Bins) -> float:
    """ECE: the mean over examples of |accuracy - confidence| of their bin."""
    filled = bins.size > 0
    gap = np.abs(bins.accuracy - bins.confidence)[filled]
    return float((bins.size[filled] * gap).sum() / bins.size.sum())


def squared_calibration_error(confidence: Floats, correct: Floats, num_bins: int = 15) -> float:
    """The debiased squared calibration error: the mean over examples of (accuracy - confidence)^2 of their bin.

    Of a bin's squared gap is subtracted what chance adds to it, the sampling variance of the mean gap, so that the
    estimate is right on average for every number of examples; it may be negative. Kumar, Liang and Ma ("Verified
    uncertainty calibration", NeurIPS 2019) subtract p (1 - p) / (n - 1), p being the accuracy of a bin of n. That is
    this variance where all its confidences are equal; where they differ, it is too large. A bin of one example has no
    variance and counts as zero.
    """
    gap = correct - confidence
    bins = reliability_bins(confidence, correct, num_bins)
    size, mean = bins.size, bins.accuracy - bins.confidence
    mean_square = reliability_bins(confidence, gap**2, num_bins).accuracy
    several = size > 1
    squares = (mean**2 - (mean_square - mean**2) / np.where(several, size - 1, 1))[several]
    return float((size[several] * squares).sum() / size.sum())


def risk_coverage(confidence: Floats, correct: Floats) -> tuple[Floats, Floats]:
    """Coverage k / N and the error rate among the k most confident examples, for k = 1..N; two arrays (N,).

    Equal confidences share their mean error, which is the expectation over all orderings of the tied examples.
    """
    _, group = np.unique(-confidence, return_inverse=True)  # groups of equal confidence, most confident first
    mean_error = np.bincount(group, weights=1 - correct) / np.bincount(group)
    kept = np.arange(1, len(confidence) + 1)
    return kept / len(confidence), np.cumsum(mean_error[np.sort(group)]) / kept


def auroc(score: Floats, positive: Floats) -> float | None:
    """Probability that a positive scores above a negative (a tie counts one half); None where a class is absent."""
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return None
    rank_sum = midranks(score)[positive == 1].sum()  # Mann-Whitney
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def midranks(values: Floats) -> Floats:
    """Ranks (N,) from 1 for the smallest; equal values share the mean of the ranks that they cover."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[group]


def evaluate_task(
    probs: Sequence[ArrayLike], answers: Sequence[int], answer_texts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Every metric of one task (see the module's text), with num_examples and the two baselines chance and majority.

    chance is the mean of 1 / C_i. majority is the accuracy of the best constant answer on these very examples: the
    most common index or, where `answer_texts` are given, the most common text if that does better. Give them: options
    that are shuffled example by example hide a constant label from its index.
    """
    each = outcomes(probs, answers)
    width = reliability_bins(each.confidence, each.correct, 15)
    mass = reliability_bins(each.confidence, each.correct, 10, equal_mass=True)
    constant = [Counter(int(a) for a in answers), Counter(answer_texts or [])]
    return {
        "accuracy": float(each.correct.mean()),
        "nll": float(each.nll.mean()),
        "brier": float(each.brier.mean()),
        "ece": calibration_error(width),
        "ece_equal_mass": calibration_error(mass),
        "squared_ce": squared_calibration_error(each.confidence, each.correct),
        "aurc": float(risk_coverage(each.confidence, each.correct)[1].mean()),
        "auroc": auroc(each.confidence, each.correct),
        "mean_abs_confidence_gap": float(np.abs(each.confidence - each.correct).mean()),
        "num_examples": len(answers),
        "chance": float(each.chance.mean()),
        "majority": max(count for counts in constant for count in counts.values()) / len(answers),
    }


def mean_over_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The unweighted mean over tasks of every metric and baseline, with num_tasks and the total num_examples.

    Tasks whose auroc is None are left out of its mean; auroc_tasks counts those that are in.
    """
    if not tasks:
        raise DataError("no evaluated tasks to average; evaluate at least one task")
    mean: dict[str, Any] = {}
    for key in (*METRICS, "chance", "majority"):
        known = [metrics[key] for metrics in tasks.values() if metrics[key] is not None]
        mean[key] = float(np.mean(known)) if known else None
    mean["auroc_tasks"] = sum(metrics["auroc"] is not None for metrics in tasks.values())
    mean["num_tasks"] = len(tasks)
    mean["num_examples"] = sum(metrics["num_examples"] for metrics in tasks.values())
    return mean


def pooled(tasks: Mapping[str, Predictions]) -> dict[str, Any]:
    """Every metric over all examples of all tasks together: one set of bins, each example with equal weight.

    majority stays a baseline that knows the task: the best constant answer of each, weighted by its examples.
    """
    if not tasks:
        raise DataError("no evaluated tasks to pool; evaluate at least one task")
    result = evaluate_task(
        [p for task in tasks.values() for p in task.probs], [a for task in tasks.values() for a in task.answers]
    )
    majorities = [evaluate_task(*task)["majority"] * len(task.answers) for task in tasks.values()]
    return {**result, "majority": sum(majorities) / result["num_examples"], "num_tasks": len(tasks)}
