"""Small products, thousands of them, in one thread.

Threads that share work of a tenth of a millisecond meet thousands of times a second. Beside another program one of them
is always late, and a head of 300 examples took 60 s with two threads where one takes 1.3 s (docs/log.md, 2026-11-29).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's operations inside are done by the thread that calls them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
