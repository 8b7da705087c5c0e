"""What makes two examples the same, as 16 bytes an example in NumPy: enough to compare millions of them.

Two different examples among ten million share their first 16 bytes of SHA-256 with a probability of 1e-25.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.tasks.types import Example, ExampleStore, Task, content_digest

BYTES = 16
Digests = NDArray[Any]  # (N,) of 16 bytes each


def digests_of(examples: Iterable[Example]) -> Digests:
    """The digest of each example."""
    return from_bytes(b"".join(content_digest(example)[:BYTES] for example in examples))


def from_bytes(joined: bytes | bytearray) -> Digests:
    """The digests that stand one behind the other."""
    return np.frombuffer(joined, f"S{BYTES}")


def digests_of_task(task: Task) -> Digests:
    """The digest of each of its examples; those of a store were computed when it was written."""
    if isinstance(task.examples, ExampleStore):
        return from_bytes(task.examples.digests())
    return digests_of(task.examples)


def found_in(digests: Digests, ordered: Digests) -> NDArray[np.bool_]:
    """Which of the ``digests`` (N,) are among the ``ordered`` (M,), in N log M steps."""
    if not len(ordered):
        return np.zeros(len(digests), dtype=bool)
    places = np.searchsorted(ordered, digests)
    return ordered[np.minimum(places, len(ordered) - 1)] == digests
