"""What a handful of seeds says: mean and standard error, and ranks within tasks. float64 throughout."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from abmll.experiments.metrics import Floats


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, None where one seed alone gives none."""

    mean: float
    error: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (standard deviation with n - 1, over the root of n). Raises ``ValueError`` for none."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(float(array.mean()), error)


def task_ranks(values: Mapping[str, Mapping[str, float]], better: str) -> dict[str, dict[str, float]]:
    """Each method's rank on every task that all methods have; 1 is the best, equals share their mean rank.

    Args:
        values: by method, by task.
        better: "higher" or "lower".
    """
    tasks = sorted(set.intersection(*(set(own) for own in values.values())))
    table = np.array([[own[task] for task in tasks] for own in values.values()], dtype=np.float64)
    ranks = [rank(column if better == "lower" else -column) for column in table.T]
    return {
        method: {task: float(own[number]) for task, own in zip(tasks, ranks, strict=True)}
        for number, method in enumerate(values)
    }


def rank(values: Floats) -> Floats:
    """Ranks (N,) from 1 for the smallest; equals share the mean of the places that they cover."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[group]
