"""What a handful of seeds or tasks says: means, standard errors and intervals, and ranks. float64 throughout."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from abmll.experiments.metrics import midranks

COUNTS = ("num_examples", "num_tasks", "auroc_tasks")  # whole numbers among the metrics


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, None where one seed alone gives none."""

    mean: float
    error: float | None


class Interval(NamedTuple):
    """A value, its 95 % interval, and the two-sided p-value against zero; None where they do not exist."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of what tasks say, as a draw of all such tasks: Student's t with n - 1 degrees of freedom.

    One task has no interval. Equal values leave no doubt: an interval without width, and p is 0, or 1 at zero.
    Raises ``ValueError`` for no values.
    """
    mean, error = estimate(values)
    if error is None:
        return Interval(mean)
    freedom = len(values) - 1
    half = float(stdtrit(freedom, 0.975)) * error
    p = float(2 * stdtr(freedom, -abs(mean) / error)) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half, p)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (standard deviation with n - 1, over the root of n). Raises ``ValueError`` for none."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(float(array.mean()), error)


def over_seeds(metrics: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Mean and standard error of every number that all seeds name; one that a seed does not know (None) is left out."""
    mean, errors = {}, {}
    for name in (name for name in metrics[0] if all(name in one for one in metrics)):
        known = [one[name] for one in metrics if one[name] is not None]
        mean[name], errors[name] = estimate(known) if known else (None, None)
    return mean | {name: round(mean[name]) for name in COUNTS if name in mean}, errors


def task_ranks(values: Mapping[str, Mapping[str, float]], better: str) -> dict[str, dict[str, float]]:
    """Each method's rank on every task that all methods have; 1 is the best, equals share their mean rank.

    Args:
        values: by method, by task.
        better: "higher" or "lower".
    """
    tasks = sorted(set.intersection(*(set(own) for own in values.values()))) if values else []
    sign = 1 if better == "lower" else -1
    ranks = [midranks(sign * np.array([own[task] for own in values.values()], dtype=np.float64)) for task in tasks]
    return {
        method: {task: float(own[number]) for task, own in zip(tasks, ranks, strict=True)}
        for number, method in enumerate(values)
    }
