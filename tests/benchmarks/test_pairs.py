"""The statistics of paired timing, on known numbers."""

import pytest

from benchmarks.pairs import Rounds, Spread, interleave
from benchmarks.trends import exponent, exponents


def test_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # The machine is ten times slower in the third round: the medians' own ratio would be 2 / 2.
    rounds = Rounds({"a": [1.0, 2.0, 30.0, 2.0, 2.0], "b": [2.0, 2.0, 20.0, 4.0, 1.0]})
    assert rounds.ratio("a", "b") == Spread(1.0, 0.5, 1.5)
    assert rounds.median("a") == 2.0


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_everybody_comes_first_in_turn_and_warm_up_is_not_timed() -> None:
    calls: list[tuple[str, int]] = []
    contenders = {name: lambda number, name=name: calls.append((name, number)) for name in "abc"}
    rounds = interleave(contenders, 7, warmup=2)
    assert calls == [(name, number) for number in range(9) for name in ("abc", "bca", "cab")[number % 3]]
    assert {name: len(seconds) for name, seconds in rounds.seconds.items()} == {"a": 7, "b": 7, "c": 7}


def test_device_is_waited_for_around_every_reading() -> None:
    events: list[str] = []
    interleave({"a": lambda number: events.append("a")}, 7, warmup=0, synchronize=lambda: events.append("wait"))
    assert events == ["wait", "a", "wait"] * 7


def test_fewer_than_seven_repetitions_are_refused() -> None:
    with pytest.raises(ValueError, match="6 repetitions: a ratio needs at least 7"):
        interleave({"a": lambda number: None}, 6)
    assert interleave({"a": lambda number: None}, 1, smoke=True).median("a") >= 0


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.0])
def test_exponent_of_an_exact_power_law(power: float) -> None:
    sizes = [4.0, 16.0, 100.0]
    assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_exponents_are_fitted_in_each_round() -> None:
    costs = {size: [size**power for power in (1.0, 2.0, 1.5)] for size in (2.0, 8.0, 32.0)}
    spread = exponents(costs)
    assert (spread.median, spread.low, spread.high) == pytest.approx((1.5, 1.25, 1.75))
