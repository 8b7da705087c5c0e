"""Learned tasks in memory, as many as fit: the longest unused leaves first, and nothing is loaded twice at once."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

from abmll.common.recent import Recent

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memory(Generic[Key, Value]):
    """Values that are made in an ``executor``, the last used of them kept; ``size`` says what one takes, in bytes."""

    def __init__(self, limit: float, size: Callable[[Value], int], executor: Executor) -> None:
        self.size = size
        self.executor = executor
        self.lock = threading.Lock()
        self.kept: Recent[Key, Value] = Recent(limit, fewest=1)
        self.coming: dict[Key, Future[Value]] = {}

    def get(self, key: Key) -> Value | None:
        """What is kept, or None."""
        with self.lock:
            return self.kept.get(key)

    def made(self, key: Key, make: Callable[[], Value]) -> "Future[Value]":
        """What is kept, or what ``make`` gives, which is then kept. Many who ask at once wait for the same one."""
        with self.lock:
            if (value := self.kept.get(key)) is not None:
                done: Future[Value] = Future()
                done.set_result(value)
                return done
            if key not in self.coming:
                self.coming[key] = self.executor.submit(self._make, key, make)
            return self.coming[key]

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, in the place of what was kept under its key."""
        size = self.size(value)  # while nobody waits: of a head it takes a hash of all that it has learned
        with self.lock:
            self.kept.put(key, value, size)

    def drop(self, wanted: Callable[[Key], bool]) -> None:
        """Forget what has such a key."""
        with self.lock:
            for key in [key for key in self.kept if wanted(key)]:
                self.kept.drop(key)

    def _make(self, key: Key, make: Callable[[], Value]) -> Value:
        try:
            value = make()
            self.put(key, value)
            return value
        finally:
            with self.lock:
                self.coming.pop(key, None)
