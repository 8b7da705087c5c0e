"""The threads that have the model: they read what waits, rows of many requests and tasks in one pass.

A pass takes as long for 32 rows of 32 tasks as for those of one. So a request waits a few milliseconds for others, and
then reads with them. While a pass runs others gather by themselves.

Where few rows wait, one thread reads them with all cores. Where many do, they are shared out to threads with their own
cores each: cores that work on one product meet at its end, thousands of times in a pass, and each time all wait for the
one that had a request to see to.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from abmll.common.errors import AbmllError, is_out_of_memory
from abmll.serving.fair_queue import FairQueue, Request, Taken
from abmll.serving.limits import ServeConfig

LOG = logging.getLogger("abmll.serving")
Reader = Callable[[Sequence[Any]], Sequence[Any]]  # rows of one kind to what was read of each
Result = TypeVar("Result")
TOKENS = 2048  # of a pass
FULL = 32  # rows that wait for no others
MANY = 16  # rows that are shared out
FIRST_RATE = 10.0  # rows a second, before any was measured


class NoMemory(AbmllError):
    """A pass needs more memory than there is."""


class Engine:
    """Reads requests' rows, each kind with its reader, and gives each request what its ``finish`` makes of them.

    ``longest`` is the number of tokens that a row has at most; ``on_pass`` is told the rows, requests and seconds of
    every pass. ``finish`` is called in the same thread. Whatever else computes with several cores belongs there too
    (``do``): every thread that does so has helpers of its own, and where these are more than the cores all are slow.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        limits: ServeConfig,
        longest: int,
        on_pass: Callable[[int, int, float], object] = lambda rows, requests, seconds: None,
    ) -> None:
        self.readers = readers
        self.window = limits.batch_window_ms / 1000
        self.longest = longest
        self.on_pass = on_pass
        self.queue = FairQueue(limits.max_queue)
        self.changed = threading.Condition()
        self.rate = FIRST_RATE
        self.errands: list[tuple[Callable[[], Any], Future[Any]]] = []
        self.is_stopped = False
        self.shared: frozenset[str] = frozenset()
        self.on_begin: Callable[[bool], object] = lambda is_alone: None
        self.busy = 0  # threads that read
        self.is_alone = False  # the one that reads has all cores
        self.thread = threading.Thread(target=self._run, name="abmll-engine", daemon=True)
        self.helpers: list[threading.Thread] = []
        self.thread.start()

    def share(self, kinds: Collection[str], threads: int, on_begin: Callable[[bool], object]) -> None:
        """Let so many threads read rows of these ``kinds`` at a time, whose readers must be safe for that.

        ``on_begin`` is called in a thread before each of its passes, and told whether no other one reads meanwhile.
        """
        self.shared, self.on_begin = frozenset(kinds), on_begin
        self.helpers = [
            threading.Thread(target=self._help, name=f"abmll-engine-{number}", daemon=True)
            for number in range(2, threads + 1)
        ]
        for helper in self.helpers:
            helper.start()

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn; its future tells the result. Raises ``QueueFull``."""
        with self.changed:
            self.queue.put(request, self.rate)
            self.changed.notify_all()

    def do(self, act: Callable[[], Result]) -> "Future[Result]":
        """Let the first thread do something between two passes."""
        future: Future[Result] = Future()
        with self.changed:
            self.errands.append((act, future))
            self.changed.notify_all()
        return future

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return self.queue.waiting

    def stop(self) -> None:
        """End after the passes that run; requests that wait get no answer."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()
        for thread in (self.thread, *self.helpers):
            thread.join(timeout=60)

    def _run(self) -> None:
        while not self.is_stopped:
            with self.changed:
                self.changed.wait_for(lambda: self.queue.waiting or self.errands or self.is_stopped)
                errands, self.errands = self.errands, []
                if not errands:  # others may come within the window
                    self.changed.wait_for(lambda: self.queue.waiting >= FULL or self.is_stopped, self.window)
                taken = [] if errands else self._take(self.queue.kind())
            for act, future in errands:
                _run_errand(act, future)
            self._work(taken)

    def _help(self) -> None:
        """Read beside the first thread while it reads a share of what waits, or something else."""
        while not self.is_stopped:
            with self.changed:
                self.changed.wait_for(lambda: self._is_wanted() or self.is_stopped)
                taken = [] if self.is_stopped else self._take(self.queue.kind(self.shared))
            self._work(taken)

    def _is_wanted(self) -> bool:
        return self.busy > 0 and not self.is_alone and self.queue.kind(self.shared) is not None

    def _take(self, kind: str | None) -> list[Taken]:
        """Rows of a kind for one pass: a share of what waits where that is much, and another thread is free."""
        if kind is None:
            return []
        waiting, free = self.queue.waiting_of(kind), 1 + len(self.helpers) - self.busy
        is_shared = kind in self.shared and waiting >= MANY
        taken = self.queue.take(TOKENS, self.longest, kind, -(-waiting // free) if is_shared else waiting)
        if taken:
            self.is_alone = self.busy == 0 and not (is_shared and self.helpers)
            self.busy += 1
            self.changed.notify_all()
        return taken

    def _work(self, taken: Sequence[Taken]) -> None:
        """Read what was taken, as one of the threads that do."""
        if not taken:
            return
        self.on_begin(self.is_alone)
        try:
            self._pass(taken)
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()

    def _pass(self, taken: Sequence[Taken]) -> None:
        started, whole = time.monotonic(), list[Request]()
        try:
            whole = self._read(taken)
        except Exception as error:  # whatever one request's rows do must not end the others'
            if len(taken) > 1:
                for one in taken:
                    self._pass([one])
                return
            LOG.warning("a request could not be read: %s: %s", type(error).__name__, error)
            taken[0][0].fail(_named(error))
        rows, seconds = sum(len(part) for _, part in taken), time.monotonic() - started
        self.on_pass(rows, len(taken), seconds)
        with self.changed:
            self.rate += 0.2 * (self.busy * rows / max(seconds, 1e-6) - self.rate)
        for request in whole:
            self._finish(request)

    def _read(self, taken: Sequence[Taken]) -> list[Request]:
        """Read these rows; gives the requests of which no row is left to be read."""
        reader = self.readers[taken[0][0].kind]
        places = [(request, row) for request, part in taken for row in part]
        found = reader([request.rows[row] for request, row in places])
        with self.changed:  # another thread may have read the request's other rows
            for (request, row), value in zip(places, found, strict=True):
                request.read[row] = value
            whole = [request for request, _ in taken if len(request.read) == len(request.rows)]
        for request, part in taken:
            request.on_progress(len(part))
        return whole

    def _finish(self, request: Request) -> None:
        if request.future.done():
            return
        try:
            result = request.finish([request.read[row] for row in range(len(request.rows))])
        except Exception as error:  # the request's own affair; who waits for it is told
            return request.fail(_named(error))
        try:
            request.future.set_result(result)
        except InvalidStateError:  # nobody waits any more
            return


def _run_errand(act: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        future.set_result(act())
    except Exception as error:  # who waits for it is told
        future.set_exception(error)


def _named(error: Exception) -> Exception:
    """The error as whoever asked can use it: torch has no type of its own for want of memory on every device."""
    if is_out_of_memory(error):
        found = NoMemory("there is not enough memory to read these texts; ask for fewer or shorter ones at once")
        found.__cause__ = error
        return found
    return error
