"""An executor whose threads do one thing each.

A thread that has computed keeps helpers, which wait for more. Where all helpers of a process are more than the cores,
every one of them is slow to begin, those of other threads too. They end with their thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from typing import Any, TypeVar

Result = TypeVar("Result")


class FreshThreads(Executor):
    """At most ``number`` things at a time, in their order; ``begin`` is called first in every thread."""

    def __init__(self, number: int, begin: Callable[[], object]) -> None:
        self.begin = begin
        self.lock = threading.Lock()
        self.free = number
        self.waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self.running: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """Let ``fn`` be called when its turn comes."""
        future: Future[Result] = Future()
        with self.lock:
            self.waiting.append((future, lambda: fn(*args, **kwargs)))
            self._next()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With ``cancel_futures`` nothing more begins; with ``wait`` what has begun comes to its end first."""
        with self.lock:
            left = [future for future, _ in self.waiting]
            coming = [*self.running, *([] if cancel_futures else left)]
            if cancel_futures:
                self.waiting.clear()
        if cancel_futures:
            for future in left:
                future.cancel()
        if wait:
            wait_for(coming)

    def _next(self) -> None:
        """Begin with what waits longest, where there is a turn; whoever calls holds the lock."""
        if self.free and self.waiting:
            self.free -= 1
            future, act = self.waiting.popleft()
            self.running.add(future)
            threading.Thread(target=self._run, args=(future, act), name="abmll-fit", daemon=True).start()

    def _run(self, future: "Future[Any]", act: Callable[[], Any]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                self.begin()
                future.set_result(act())
        except BaseException as error:  # whoever waits is told
            future.set_exception(error)
        finally:
            with self.lock:
                self.running.discard(future)
                self.free += 1
                self._next()
