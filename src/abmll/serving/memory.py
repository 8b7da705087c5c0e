"""Learned tasks in memory, as many as fit: the longest unused leaves first, and nothing is loaded twice at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memory(Generic[Key, Value]):
    """A least-recently-used cache whose values are made in an ``executor``; ``size`` says what one takes, in bytes."""

    def __init__(self, limit: float, size: Callable[[Value], int], executor: Executor) -> None:
        self.limit = limit
        self.size = size
        self.executor = executor
        self.lock = threading.Lock()
        self.kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.bytes = 0
        self.coming: dict[Key, Future[Value]] = {}

    def get(self, key: Key) -> Value | None:
        """What is kept, or None."""
        with self.lock:
            if key not in self.kept:
                return None
            self.kept.move_to_end(key)
            return self.kept[key][0]

    def made(self, key: Key, make: Callable[[], Value]) -> "Future[Value]":
        """What is kept, or what ``make`` gives, which is then kept. Many who ask at once wait for the same one."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                done: Future[Value] = Future()
                done.set_result(self.kept[key][0])
                return done
            if key not in self.coming:
                self.coming[key] = self.executor.submit(self._make, key, make)
            return self.coming[key]

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, in the place of what was kept under its key."""
        size = self.size(value)
        with self.lock:
            self._drop(key)
            self.kept[key] = (value, size)
            self.bytes += size
            while self.bytes > self.limit and len(self.kept) > 1:
                self._drop(next(iter(self.kept)))

    def drop(self, wanted: Callable[[Key], bool]) -> None:
        """Forget what has such a key."""
        with self.lock:
            for key in [key for key in self.kept if wanted(key)]:
                self._drop(key)

    def _make(self, key: Key, make: Callable[[], Value]) -> Value:
        try:
            value = make()
            self.put(key, value)
            return value
        finally:
            with self.lock:
                self.coming.pop(key, None)

    def _drop(self, key: Key) -> None:
        _, size = self.kept.pop(key, (None, 0))
        self.bytes -= size
