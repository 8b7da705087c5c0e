"""An executor whose threads do one thing each.

A thread that has computed keeps helpers, which wait for more. Where all helpers of a process are more than the cores,
every one of them is slow to begin, those of other threads too. They end with their thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")


class FreshThreads(Executor):
    """At most ``number`` things at a time; ``begin`` is called first in every thread."""

    def __init__(self, number: int, begin: Callable[[], object]) -> None:
        self.turns = threading.Semaphore(number)
        self.begin = begin
        self.lock = threading.Lock()
        self.coming: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """Let ``fn`` be called when its turn comes."""
        future: Future[Result] = Future()
        with self.lock:
            self.coming.add(future)
        threading.Thread(target=self._run, args=(future, fn, args, kwargs), name="abmll-fit", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End: after what runs, or with ``wait`` at once."""
        with self.lock:
            coming = list(self.coming)
        if cancel_futures:
            for future in coming:
                future.cancel()
        if wait:
            _ended(coming)

    def _run(self, future: "Future[Any]", fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        with self.turns:
            try:
                if future.set_running_or_notify_cancel():
                    self.begin()
                    future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # whoever waits is told
                future.set_exception(error)
            finally:
                with self.lock:
                    self.coming.discard(future)


def _ended(futures: "list[Future[Any]]") -> None:
    wait(futures)
