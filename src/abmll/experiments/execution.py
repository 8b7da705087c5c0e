"""Computing cells, in this process or in several single-threaded ones that end when this one does."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from abmll.common.errors import AbmllError
from abmll.common.progress import progress
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import Cell
from abmll.experiments.planning import units

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A cell that could not be computed, and why."""

    cell: Cell
    error: str


def compute(
    cells: Sequence[Cell], results: ResultFolder, jobs: int, say: Callable[[str], None], quiet: bool
) -> list[Failure]:
    """Compute every cell whose result is not there; returns those that could not be computed.

    A cell that fails (a learning rate far too high, a task too short) leaves the others alone. Raises
    ``KeyboardInterrupt`` on Ctrl-C: what is finished stays.
    """
    missing = units([cell for cell in cells if not cell.path(results.folder).exists()])
    several = jobs > 1  # which would say everything several times
    runner = CellRunner(results, _say_nothing if several else say, quiet or several)
    failures: list[Failure] = []
    with progress(sum(map(len, missing)), "comparing", "cell", quiet=quiet) as bar:
        for unit, errors in work_through(missing, runner.compute_all, jobs):
            bar.update(len(unit))
            for cell in unit:
                if cell.hash in errors:
                    failures.append(Failure(cell, errors[cell.hash]))
                    say(f"{cell.spec.label}, seed {cell.seed}: {errors[cell.hash]}")
    return failures


def _say_nothing(line: str) -> None:
    """What one of several processes announces."""


def work_through(units: Sequence[Unit], do: Callable[[Unit], Result], jobs: int) -> Iterator[tuple[Unit, Result]]:
    """Do every unit, yielding each with its result as it ends.

    Args:
        do: with several processes each has its own copy, so that it and the units and results must be picklable.
        jobs: processes; 1 is this one.

    Raises what ``do`` raises, and ``AbmllError`` where a process ends by itself; the others are ended then.
    """
    jobs = min(jobs, len(units))
    if jobs <= 1:
        yield from ((unit, do(unit)) for unit in units)
        return
    # spawn: a fork of a process with torch's threads may hang
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(do, theirs))
    try:
        unit_of = {pool.submit(_do, unit): unit for unit in units}
        for future in as_completed(unit_of):
            yield unit_of[future], future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise AbmllError(
            "a process of the comparison has ended by itself, perhaps for want of memory; run the same command to go "
            "on, with fewer --jobs"
        ) from None
    finally:
        ours.close()  # ends the processes that still work; what they write is whole or not there
        pool.shutdown(cancel_futures=True)


_own: dict[str, Callable[[Any], Any]] = {}  # of a worker process: what it does to each unit


def _begin(do: Callable[[Any], Any], parent: Connection) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own lock would be one between processes, and outlive a process that is ended
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _own["do"] = do


def _do(unit: Any) -> Any:
    return _own["do"](unit)


def _end_with(parent: Connection) -> None:
    """End this process as soon as the first one is done with it, or was killed."""
    with suppress(OSError):
        parent.poll(None)  # nothing is ever sent: what comes is the end
    os._exit(0)
