"""Running a comparison: what is wanted, what of it is there, computing the rest, and what could not be computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from abmll.common.errors import AbmllError
from abmll.common.progress import progress
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import Cell
from abmll.experiments.planning import units
from abmll.experiments.workers import work_through


@dataclass(frozen=True)
class Failure:
    """A cell that could not be computed, and why."""

    cell: Cell
    error: str


def missing_cells(cells: Sequence[Cell], place: ResultFolder) -> list[Cell]:
    """Those whose result is not there yet."""
    return [cell for cell in cells if not cell.path(place.folder).exists()]


def compute(
    cells: Sequence[Cell], place: ResultFolder, jobs: int, say: Callable[[str], None], quiet: bool
) -> list[Failure]:
    """Compute every cell whose result is not there; returns those that could not be computed.

    A cell that fails (a learning rate beyond all measure, a task too short) leaves the others alone. Raises
    ``KeyboardInterrupt`` on Ctrl-C: what is finished stays.
    """
    wanted = units(missing_cells(cells, place))
    several = jobs > 1
    make = partial(_runner, place, _say_nothing if several else say, quiet or several)
    failures: list[Failure] = []
    with progress(sum(map(len, wanted)), "comparing", "cell", quiet=quiet) as bar:
        for unit, errors in work_through(wanted, make, jobs):
            bar.update(len(unit))
            for cell in unit:
                if cell.hash in errors:
                    failures.append(Failure(cell, errors[cell.hash]))
                    say(f"{cell.spec.label}, seed {cell.seed}: {errors[cell.hash]}")
    return failures


def _runner(place: ResultFolder, say: Callable[[str], None], quiet: bool) -> Callable[[Sequence[Cell]], dict[str, str]]:
    return partial(_compute_all, CellRunner(place, say, quiet))


def _compute_all(runner: CellRunner, unit: Sequence[Cell]) -> dict[str, str]:
    """Compute the cells of a unit; returns the error of each that could not be, by its hash."""
    errors = {}
    for cell in unit:
        try:
            runner.compute(cell)
        except AbmllError as error:
            errors[cell.hash] = str(error)
    return errors


def _say_nothing(line: str) -> None:
    """Several processes would say everything several times."""
