"""Units of work in one process, or in several single-threaded ones that end when this one does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from abmll.common.errors import AbmllError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Make = Callable[[], Callable[[Unit], Result]]


def work_through(units: Sequence[Unit], make: Make[Unit, Result], jobs: int) -> Iterator[tuple[Unit, Result]]:
    """Do every unit, yielding each with its result as it ends.

    Args:
        make: called once in every process, gives the function that does a unit. With several processes both have to
            be of a module, and units and results plain data: they are sent to and fro.
        jobs: processes; 1 is this one.

    Raises ``AbmllError`` where a unit raises it, or where a process ends by itself; the others are ended then.
    """
    jobs = min(jobs, len(units))
    if jobs > 1:
        yield from _in_processes(units, make, jobs)
        return
    do = make() if units else None
    for unit in units:
        assert do is not None
        yield unit, do(unit)


def _in_processes(units: Sequence[Unit], make: Make[Unit, Result], jobs: int) -> Iterator[tuple[Unit, Result]]:
    # spawn: a fork of a process with torch's threads may hang
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(units))[::-1]
    workers: dict[Any, Any] = {}
    try:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(waiting.pop())
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                number, result = _received(connection, workers[connection])
                yield units[number], result
                if waiting:
                    connection.send(waiting.pop())
                else:
                    connection.close()
                    workers.pop(connection).join()
    finally:
        for process in workers.values():
            process.terminate()  # what it writes is whole or not there
        for process in workers.values():
            process.join()


def _received(connection: Connection, process: Any) -> tuple[int, Any]:
    """The number of a unit that was done, and its result."""
    try:
        number, result, error = connection.recv()
    except EOFError:
        process.join()
        raise AbmllError(
            f"a process of the comparison has ended with code {process.exitcode}, perhaps for want of memory; "
            "run the same command to go on, with fewer --jobs"
        ) from None
    if error is not None:
        raise AbmllError(error)
    return number, result


def _serve(connection: Connection, make: Make[Any, Any]) -> None:
    """A worker process: do what comes through the connection, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own lock would be one between processes, and outlive a process that is ended
    incoming: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, incoming), daemon=True).start()
    do = None
    while True:
        number, unit = incoming.get()
        try:
            do = do or make()
            connection.send((number, do(unit), None))
        except AbmllError as error:
            connection.send((number, None, str(error)))


def _read(connection: Connection, incoming: "SimpleQueue[tuple[int, Any]]") -> None:
    """Take units in, even while one is being worked on: so the end of the first process is noticed at once."""
    while True:
        try:
            incoming.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the first process is done, or was killed: a worker must not go on alone
