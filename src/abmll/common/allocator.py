"""How the C library keeps memory that was freed: glibc's own ways are made for small programs.

Its first heap is cut off above the last block in use, and grows again with the next large tensor: a pass over 28 texts
took 42 ms a text where 34 would do (docs/log.md, 2026-11-29). And each new thread may get a heap of its own, which
keeps as much as it ever had. In a process that runs for days, small blocks that stay come to lie between large ones
that were freed, and the heaps grow though no more is in use.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM, MMAP, ARENAS = -1, -3, -8  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX
KEPT = 1 << 30  # bytes at the end of a heap that stay with the process
LARGE = 32 << 20  # bytes of a block outside of the heaps: what older versions take at most


def keep_freed_memory(heaps: int | None = None) -> None:
    """Let this process keep up to a gigabyte of freed memory for its next tensors; ``heaps``: in so many heaps at most.

    Nothing changes where the C library is another one.
    """
    set_option = _glibc("mallopt")
    if set_option is not None:
        set_option(TRIM, KEPT)
        set_option(MMAP, LARGE)  # which would be 128 kB from now on
        if heaps is not None:
            set_option(ARENAS, heaps)


@contextmanager
def giving_back(every: float) -> Iterator[None]:
    """Within it, whole pages of freed memory go back to the system every so many seconds.

    Those that are needed again are faulted in: some 100 MB, a tenth of a second. Nothing is done where the C library is
    another one.
    """
    trim, ended = _glibc("malloc_trim"), threading.Event()

    def give_back() -> None:
        while trim is not None and not ended.wait(every):
            trim(0)

    thread = threading.Thread(target=give_back, name="abmll-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _glibc(function: str) -> Any:
    """The C library's function; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
