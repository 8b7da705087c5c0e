"""How the C library keeps memory that was freed: glibc's own ways are made for small programs.

Its first heap is cut off above the last block in use, and grows again with the next large tensor: a pass over 28 texts
took 42 ms a text where 34 would do (docs/log.md, 2026-11-29). And each new thread may get a heap of its own, which
keeps as much as it ever had.
"""

import ctypes
import sys

TRIM, MMAP, ARENAS = -1, -3, -8  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX
KEPT = 1 << 30  # bytes at the end of a heap that stay with the process
LARGE = 32 << 20  # bytes of a block outside of the heaps: what older versions take at most


def keep_freed_memory(heaps: int | None = None) -> None:
    """Let this process keep up to a gigabyte of freed memory for its next tensors; ``heaps``: in so many heaps at most.

    Nothing changes where the C library is another one.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(TRIM, KEPT)
        set_option(MMAP, LARGE)  # which would be 128 kB from now on
        if heaps is not None:
            set_option(ARENAS, heaps)
