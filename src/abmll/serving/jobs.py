"""Jobs: one thread a lane does them in their order; who waits sees how far they are, and can cancel them."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from abmll.common.errors import AbmllError
from abmll.serving.engine import NoMemory
from abmll.serving.job_store import CANCELLED, JobStore
from abmll.serving.storage_errors import StorageError

LAST_STEP = 60.0  # seconds in which a job ends that is told to
LOG = logging.getLogger("abmll.serving")


class Cancelled(Exception):
    """The job is not wanted any more."""


@dataclass(eq=False)
class Live:
    """A job that is not finished, as it is now: ``done`` of ``total`` steps or texts."""

    id: str
    task: int
    version: int
    kind: str
    lane: str
    done: int = 0
    total: int = 0
    is_running: bool = False
    refused: AbmllError | None = None  # by a disk or a memory that was full, which it need not be the next time
    cancelled: threading.Event = field(default_factory=threading.Event)
    finished: "Future[None]" = field(default_factory=Future)

    def advance(self, number: int = 1) -> None:
        """Note that so much more is done. Raises ``Cancelled``."""
        self.done += number
        self.check()

    def check(self) -> None:
        """Raises ``Cancelled`` where the job is not wanted any more."""
        if self.cancelled.is_set():
            raise Cancelled


class Jobs:
    """Does what the job store says is to be done, jobs of one lane one after the other.

    ``lanes`` has what does a job of each lane, ``begin`` is called first in each lane's thread. What was not finished
    when the process ended is done after its start, or by another server of the same database.
    """

    def __init__(
        self, store: JobStore, lanes: Mapping[str, Callable[[Live], None]], begin: Callable[[], object] = lambda: None
    ) -> None:
        self.store = store
        self.begin = begin
        self.lock = threading.Lock()
        self.live: dict[str, Live] = {}
        self.is_stopped = False
        self.unnoted: list[tuple[str, str, str | None]] = []  # ends of jobs that the database did not take
        self.queues: dict[str, queue.SimpleQueue[Live | None]] = {lane: queue.SimpleQueue() for lane in lanes}
        self.take()
        self.threads = [
            threading.Thread(target=self._work, args=(lane, act), name=f"abmll-{lane}", daemon=True)
            for lane, act in lanes.items()
        ]
        for thread in self.threads:
            thread.start()

    def start(self, job: str, task: int, version: int, kind: str, lane: str) -> Live:
        """Let a job wait for its turn; the same as before where it does already."""
        with self.lock:
            live = self.live.get(job)
            if live is None:
                live = self.live[job] = Live(job, task, version, kind, lane)
                self.queues[lane].put(live)
        return live

    def take(self) -> None:
        """Do the jobs that were left by a server that has ended."""
        for row in self.store.take():
            self.start(row.id, row.task, row.version, row.kind, row.how)

    def look(self) -> None:
        """Let those jobs end that were cancelled through another server, or whose task was deleted there."""
        live = dict(self.live)
        wanted = self.store.wanted(list(live))
        for job in live.keys() - wanted:
            live[job].cancelled.set()

    def cancel(self, job: str) -> bool:
        """Let a job end as soon as it can; False where it has ended already."""
        live = self.live.get(job)
        if live is None:
            return self.store.cancel(job)
        live.cancelled.set()
        return True

    def cancel_all(self, task: int) -> None:
        """Cancel all jobs of a task."""
        for live in list(self.live.values()):
            if live.task == task:
                live.cancelled.set()

    def stop(self) -> None:
        """End as soon as may be; jobs that are not finished are done after the next start."""
        self.is_stopped = True
        for live in list(self.live.values()):
            live.cancelled.set()
        for waiting in self.queues.values():
            waiting.put(None)
        for thread in self.threads:
            thread.join(LAST_STEP)

    def _work(self, lane: str, act: Callable[[Live], None]) -> None:
        self.begin()
        while (live := self.queues[lane].get()) is not None and not self.is_stopped:
            state, error = "done", None
            try:
                live.check()
                if not self.store.wanted([live.id]):
                    raise Cancelled
                live.is_running = True
                act(live)
            except Cancelled:
                state, error = "cancelled", CANCELLED
            except StorageError as problem:
                LOG.error("a job could not keep what it had learned: %s", problem)
                state, error, live.refused = "failed", problem.told, problem
            except AbmllError as problem:
                state, error = "failed", str(problem)
                live.refused = problem if isinstance(problem, NoMemory) else None
            except Exception as problem:  # a job's defect must not end the jobs behind it
                LOG.exception("a job failed")
                state, error = "failed", f"the server failed at it ({type(problem).__name__}); its log says more"
            if self.is_stopped and state != "done":
                return
            self._note((live.id, state, error))
            with self.lock:
                del self.live[live.id]
            live.finished.set_result(None)

    def _note(self, end: tuple[str, str, str | None]) -> None:
        """Note a job's end, and those not noted before; a job whose end never is, is done after the next start."""
        with self.lock:
            ends, self.unnoted = [*self.unnoted, end], []
        for number, one in enumerate(ends):
            try:
                self.store.end(*one)
            except AbmllError as problem:
                LOG.error("a job's end could not be noted: %s", problem)
                with self.lock:
                    self.unnoted += ends[number:]
                return
