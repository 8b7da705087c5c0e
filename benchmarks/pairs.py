"""Timing side by side: A B C, B C A, ..., each round on the next batch, and the ratio taken within each round.

Whatever slows the machine for a while slows all contenders of a round alike, so that ratios are steadier than times.
Who comes first in a round meets its sizes first, for which a GPU's libraries choose their kernels and its memory grows:
everybody's turn comes. Of three or more, a ratio's median is that of the rounds in which another one was first; of two,
each is first as often as the other.
"""

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MIN_REPETITIONS = 7


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median and quartiles (inclusive method) of one or more numbers."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Rounds:
    """Seconds of every contender in every round."""

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, numerator: str, denominator: str) -> Spread:
        """How many times as long ``numerator`` took: the median of the ratios within each round."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return Spread.of([one / other for one, other in pairs])

    def median(self, name: str) -> float:
        """The median seconds of one contender."""
        return statistics.median(self.seconds[name])


def interleave(
    contenders: Mapping[str, Callable[[int], object]],
    repetitions: int,
    *,
    warmup: int = 1,
    smoke: bool = False,
    synchronize: Callable[[], None] = lambda: None,
) -> Rounds:
    """Time all contenders in turn, another one first in each round, ``repetitions`` times after ``warmup`` rounds.

    Two contenders take one round more where the number is odd.

    Args:
        contenders: functions of the round's number, which says what to work on; it differs from round to round.
        smoke: allow fewer repetitions than a result needs; for trying out.
        synchronize: waits for the device before each reading of the clock.

    Raises ``ValueError`` for fewer than seven repetitions.
    """
    if repetitions < MIN_REPETITIONS and not smoke:
        raise ValueError(f"{repetitions} repetitions: a ratio needs at least {MIN_REPETITIONS}")
    if len(contenders) == 2 and not smoke:
        repetitions += repetitions % 2
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()  # what was built before is not to be cleared away in the middle
    order = deque(contenders.items())
    for number in range(warmup + repetitions):
        for name, work in order:
            synchronize()
            started = time.perf_counter()
            work(number)
            synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
        order.rotate(-1)
    return Rounds(seconds)
