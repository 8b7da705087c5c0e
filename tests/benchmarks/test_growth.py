"""Growth is measured as it is said, and what is to be linear calls functions in proportion: counted, not timed."""

from pathlib import Path

import pytest

from abmll.tasks import load_tasks, order
from abmll.tasks import shelf as shelf_module
from benchmarks import growth
from benchmarks.pairs import Rounds
from benchmarks.trends import counted, exponent, timed


def test_an_exponent_is_the_slope_and_the_steepest_part_is_what_counts() -> None:
    assert exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)
    row = counted("it", {10: 10, 100: 100, 1000: 10_000}, 1.05)
    assert (row.ratio, row.met, row.note) == (
        pytest.approx(2),
        False,
        "10: 10 calls, 100: 100 calls, 1,000: 10,000 calls",
    )
    row = timed("it", Rounds({"10": [1.0, 2.0], "1000": [100.0, 200.0]}), 1.0)
    assert (row.name, row.ratio, row.unit, row.met) == ("growth with it", 1.0, "exponent", True)


def test_operations_are_calls_and_the_same_every_time() -> None:
    def calls(number: int) -> int:
        return growth.operations(lambda: [abs(-1) for _ in range(number)])

    assert calls(100) - calls(50) == 50
    assert calls(100) == calls(100)


@pytest.mark.parametrize("on_disk", [False, True])
def test_reading_hashing_and_checking_tasks_is_linear(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "IN_MEMORY", 0 if on_disk else 10**6)
    costs = {}
    for size in (10, 40, 160):
        growth.write_files(tmp_path / str(size), size, rows=4)
        load_tasks(tmp_path / str(size))  # texts that are normalised once
        costs[size] = growth.operations(lambda size=size: growth.used(load_tasks(tmp_path / str(size))))
    assert counted("files", costs, growth.LINEAR).met, costs


@pytest.mark.parametrize("draws_from", ["task", "union"])
def test_drawing_an_epochs_examples_is_linear_in_the_tasks(draws_from: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers that are put in order: a sort is one call, however long it is."""
    sorted_numbers: list[int] = []
    permuted = order._permutation

    def counting(length: int, seed: int, *labels: int | str) -> object:
        sorted_numbers.append(length)
        return permuted(length, seed, *labels)

    monkeypatch.setattr(order, "_permutation", counting)
    costs = {}
    for tasks in (10, 40, 160):
        order._order_of_epoch.cache_clear()
        sorted_numbers.clear()
        growth.draw_epoch(tasks, draws_from)
        costs[tasks] = sum(sorted_numbers)
    assert counted("tasks", costs, growth.LINEAR).met, costs
