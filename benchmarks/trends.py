"""How a cost grows: the exponent b of cost = a size^b, by least squares on the logarithms."""

import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.pairs import Spread


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost against log size."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def exponents(costs: Mapping[float, Sequence[float]]) -> Spread:
    """The exponent fitted in each round of ``size -> cost of each round``: median and quartiles."""
    rounds = zip(*costs.values(), strict=True)
    return Spread.of([exponent(list(costs), round_) for round_ in rounds])
