"""Small products, thousands of them, in one thread.

Threads that share work of a tenth of a millisecond meet thousands of times a second. Beside another program one of them
is always late, and a head of 300 examples took 60 s with two threads where one takes 1.3 s (docs/log.md, 2026-11-29).

Heads can be learned and asked from several Python threads, with the same numbers: how many threads torch takes is each
Python thread's own. But one that meets torch for the first time while another is in ``one_thread`` takes one thread
from then on. A program whose threads also read texts calls ``torch.set_num_threads`` at the start of each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's operations inside are done by the thread that calls them."""
    before = torch.get_num_threads()
    if before == 1:  # nothing is put back either: 1 would be what threads that start later take
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
