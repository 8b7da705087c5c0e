"""Workers in this process, or in several single-threaded ones that end when this one does."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from tqdm import tqdm

from abmll.experiments.executors.work import Lost, Workers

DIED = "its process has ended by itself, perhaps for want of memory; run the same command to go on, with fewer --jobs"


@dataclass(frozen=True)
class LocalProcesses:
    """``jobs`` processes of this computer; one is this process."""

    jobs: int

    @property
    def several(self) -> bool:
        return self.jobs > 1

    @contextmanager
    def workers(self, do: Callable[[Any], Any], size: int) -> Iterator[Workers]:
        jobs = min(self.jobs, size)
        if jobs <= 1:
            yield ThisProcess(do)
            return
        lanes = Lanes(do, jobs)
        try:
            yield lanes
        finally:
            lanes.close()


class ThisProcess:
    """One worker, which does a unit when it is handed over."""

    room = 1

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self.do = do
        self.done: list[Any] = []

    def submit(self, units: Sequence[Any]) -> Sequence[int]:
        self.done = [self.do(unit) for unit in units]
        return range(len(units))

    def finished(self, jobs: Collection[int]) -> Collection[int]:
        return list(jobs)

    def outcome(self, job: int) -> Any:
        return self.done[job]


class Lanes:
    """Pools of one process each: where one breaks, it is known which unit it was doing, and the others go on."""

    def __init__(self, do: Callable[[Any], Any], jobs: int) -> None:
        self.room = jobs
        self.do = do
        self.context = get_context("spawn")  # a fork of a process with torch's threads may hang
        self.theirs, self.ours = self.context.Pipe(duplex=False)
        self.idle = [self._lane() for _ in range(jobs)]
        self.busy: dict[Future[Any], ProcessPoolExecutor] = {}

    def submit(self, units: Sequence[Any]) -> Sequence[Future[Any]]:
        return [self._hand_over(unit) for unit in units]

    def finished(self, jobs: Collection[Future[Any]]) -> Collection[Future[Any]]:
        return wait(jobs, return_when=FIRST_COMPLETED).done

    def outcome(self, job: Future[Any]) -> Any:
        lane = self.busy.pop(job)
        try:
            result = job.result()
        except BrokenProcessPool:
            lane.shutdown()
            lane = self._lane()
            result = Lost(DIED, again=True)
        finally:
            self.idle.append(lane)
        return result

    def close(self) -> None:
        """End the processes, also those that still work: what they write is whole or not there."""
        self.ours.close()
        for lane in (*self.idle, *self.busy.values()):
            lane.shutdown(cancel_futures=True)

    def _lane(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self.context, initializer=_begin, initargs=(self.do, self.theirs))

    def _hand_over(self, unit: Any) -> Future[Any]:
        lane = self.idle.pop()
        try:
            job = lane.submit(_do, unit)
        except BrokenProcessPool:  # it died while it had nothing to do
            lane.shutdown()
            lane = self._lane()
            job = lane.submit(_do, unit)
        self.busy[job] = lane
        return job


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
