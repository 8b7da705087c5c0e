"""One line of the results: a ratio with its spread, what it is held against, and what it was made of."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pairs import Rounds, Spread

KEYS = ("name", "target", "ratio", "low", "high", "unit", "met", "numerator", "denominator", "measured_in", "note")


@dataclass(frozen=True)
class Row:
    """``ratio`` is in ``unit``: ``x`` (times), ``%``, ``exponent``, or a plain unit such as ``GFLOP/s``.

    ``numerator`` and ``denominator`` are the medians that the ratio compares, in ``measured_in``. A target is an upper
    bound.
    """

    name: str
    ratio: float
    low: float
    high: float
    unit: str = "x"
    target: float | None = None
    numerator: float | None = None
    denominator: float | None = None
    measured_in: str | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the target; None without one."""
        return None if self.target is None else self.ratio <= self.target

    def document(self) -> dict[str, Any]:
        """The row as JSON, numbers to six digits."""
        values = asdict(self) | {"met": self.met}
        return {key: _rounded(values[key]) for key in KEYS}


def timed(
    name: str, rounds: Rounds, numerator: str, denominator: str, target: float | None = None, note: str = ""
) -> Row:
    """The row of two contenders that were timed in the same rounds."""
    return compared(
        name,
        rounds.ratio(numerator, denominator),
        rounds.median(numerator),
        rounds.median(denominator),
        "s",
        target,
        note,
    )


def compared(
    name: str,
    spread: Spread,
    numerator: float,
    denominator: float,
    measured_in: str,
    target: float | None = None,
    note: str = "",
) -> Row:
    """The row of a ratio whose spread is known."""
    return Row(name, spread.median, spread.low, spread.high, "x", target, numerator, denominator, measured_in, note)


def absolute(name: str, spread: Spread, unit: str, note: str = "") -> Row:
    """The row of a plain measurement."""
    return Row(name, spread.median, spread.low, spread.high, unit, note=note)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
