"""Values that were used of late, in a bounded number of bytes."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The values used last, of ``max_bytes`` together; the longest unused leave first.

    At least ``fewest`` stay, however large. Iterating gives the keys, the longest unused first. It is for one thread at
    a time.
    """

    def __init__(self, max_bytes: float, fewest: int = 0) -> None:
        self.max_bytes = max_bytes
        self.fewest = fewest
        self.num_bytes = 0
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._kept)

    def get(self, key: Key) -> Value | None:
        """What is kept, which counts as a use, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value that takes ``size`` bytes, in the place of what was kept under its key."""
        self.drop(key)
        self._kept[key] = (value, size)
        self.num_bytes += size
        while self.num_bytes > self.max_bytes and len(self._kept) > self.fewest:
            self.drop(next(iter(self._kept)))

    def drop(self, key: Key) -> None:
        """Forget what is kept under a key, if anything is."""
        if key in self._kept:
            self.num_bytes -= self._kept.pop(key)[1]

    def clear(self) -> None:
        """Forget all of it."""
        self._kept.clear()
        self.num_bytes = 0
