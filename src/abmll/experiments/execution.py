"""Computing the cells of a comparison by an executor, and which of them could not be."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from abmll.common.progress import progress
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import Cell
from abmll.experiments.executors.work import Executor, Lost, work_through
from abmll.experiments.planning import units


@dataclass(frozen=True)
class Failure:
    """A cell that could not be computed, and why."""

    cell: Cell
    error: str


def compute(
    cells: Sequence[Cell], results: ResultFolder, executor: Executor, say: Callable[[str], None], quiet: bool
) -> list[Failure]:
    """Compute every cell whose result is not there; returns those that could not be computed.

    A cell that fails (a learning rate far too high, a task too short, a worker that dies again and again) leaves the
    others alone. Raises ``KeyboardInterrupt`` on Ctrl-C: what is finished stays.
    """
    missing = units([cell for cell in cells if not cell.path(results.folder).exists()])
    runner = runner_for(executor, results, say, quiet)
    failures: list[Failure] = []
    with (
        progress(sum(map(len, missing)), "comparing", "cell", quiet=quiet) as bar,
        closing(work_through(missing, runner.compute_all, executor)) as done,
    ):
        for unit, found in done:
            bar.update(len(unit))
            if isinstance(found, Lost):
                found = {cell.hash: found.reason for cell in unit if not cell.path(results.folder).exists()}
            for cell in unit:
                if cell.hash in found:
                    failures.append(Failure(cell, found[cell.hash]))
                    say(f"{cell.spec.label}, seed {cell.seed}: {found[cell.hash]}")
    return failures


def runner_for(executor: Executor, results: ResultFolder, say: Callable[[str], None], quiet: bool) -> CellRunner:
    """A runner that says nothing where it is one of several, which would say everything several times."""
    return CellRunner(results, _say_nothing if executor.several else say, quiet or executor.several)


def _say_nothing(line: str) -> None:
    """What one of several processes announces."""
