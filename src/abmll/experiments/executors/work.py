"""Units of work, handed to the workers of an executor; those whose worker dies are handed over again."""

import traceback
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")

ATTEMPTS = 3  # of a unit, in all


@dataclass(frozen=True)
class Lost:
    """There is no result of a unit, and why; ``again``: its worker has died, and another may do better."""

    reason: str
    again: bool


class Workers(Protocol):
    """Those who do the units."""

    @property
    def room(self) -> float:
        """So many units may be handed over at the same time."""
        ...

    def submit(self, units: Sequence[Any]) -> Sequence[Any]:
        """Hand the units over; returns a hashable job for each."""
        ...

    def finished(self, jobs: Collection[Any]) -> Collection[Any]:
        """Those that are done, after a moment of waiting; there may be none."""
        ...

    def outcome(self, job: Any) -> Any:
        """What a finished job has resulted in, or ``Lost``."""
        ...


class Executor(Protocol):
    """Knows its workers before they are started."""

    @property
    def several(self) -> bool:
        """Whether they are other processes than this one."""
        ...

    def workers(self, do: Callable[[Any], Any], size: int) -> AbstractContextManager[Workers]:
        """Workers that do ``do`` to each of ``size`` units; whatever they still do ends with the block."""
        ...


def work_through(
    units: Sequence[Unit], do: Callable[[Unit], Result], executor: Executor
) -> Generator[tuple[Unit, Result | Lost], None, None]:
    """Do every unit, yielding each with its result as it ends.

    A unit is done again where its worker has died, ``ATTEMPTS`` times in all; the others go on meanwhile. Closing the
    iterator, or an exception in it, ends what is still being done.

    Args:
        do: every worker has its own copy, so that it and the units and results must be picklable.

    Raises what ``do`` raises, where its workers are processes of this computer; elsewhere that is a ``Lost``.
    """
    waiting = deque((unit, 1) for unit in units)
    running: dict[Any, tuple[Unit, int]] = {}
    with executor.workers(do, len(units)) as workers:
        while waiting or running:
            ready = [waiting.popleft() for _ in range(int(min(len(waiting), workers.room - len(running))))]
            if ready:
                running.update(zip(workers.submit([unit for unit, _ in ready]), ready, strict=True))
            for job in workers.finished(running):
                unit, attempt = running.pop(job)
                outcome = workers.outcome(job)
                if not isinstance(outcome, Lost):
                    yield unit, outcome
                elif outcome.again and attempt < ATTEMPTS:
                    waiting.append((unit, attempt + 1))
                else:
                    times = f" ({attempt} attempts)" if outcome.again else ""
                    yield unit, Lost(outcome.reason + times, again=False)


def attempt(do: Callable[[Unit], Result], unit: Unit) -> Result | Lost:
    """The result; a defect of ``do`` is told as text, with its traceback in the worker's log.

    An exception may not survive the way to another computer, and one unit's must not end those of hours.
    """
    try:
        return do(unit)
    except Exception as error:  # whatever a unit's defect is, those of the others go on
        traceback.print_exc()
        return Lost(f"{type(error).__name__}: {error}", again=False)
