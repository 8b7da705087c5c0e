"""How a cost grows: the exponent b of cost = a size^b, by least squares on the logarithms; and its rows."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from benchmarks.pairs import Rounds, Spread
from benchmarks.rows import Row


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost against log size."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def exponents(costs: Mapping[float, Sequence[float]]) -> Spread:
    """The exponent fitted in each round of ``size -> cost of each round``: median and quartiles."""
    rounds = zip(*costs.values(), strict=True)
    return Spread.of([exponent(list(costs), round_) for round_ in rounds])


def timed(what: str, rounds: Rounds, bound: float | None = None) -> Row:
    """The exponent of seconds whose contenders are named by their sizes; the note has the median at every size."""
    note = ", ".join(f"{int(size):,}: {rounds.median(size):.3g} s" for size in rounds.seconds)
    spread = exponents({float(size): seconds for size, seconds in rounds.seconds.items()})
    return _row(what, spread, bound, note)


def counted(what: str, costs: Mapping[int, int], bound: float | None = None) -> Row:
    """The exponent of numbers of operations by size: the largest between two neighbouring sizes."""
    steepest = max(exponent(sizes, (costs[sizes[0]], costs[sizes[1]])) for sizes in pairwise(costs))
    note = ", ".join(f"{size:,}: {cost:,} calls" for size, cost in costs.items())
    return _row(what, Spread(steepest, steepest, steepest), bound, note)


def _row(what: str, spread: Spread, bound: float | None, note: str) -> Row:
    return Row(f"growth with {what}", spread.median, spread.low, spread.high, "exponent", bound, note=note)
