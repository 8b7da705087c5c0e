"""Freed memory stays with the process, where the C library can be told so."""

import subprocess
import sys

import pytest

# A block above another one that stays is freed, and asked for again: are its pages there?
PROGRAM = """
import ctypes, resource, sys
from abmll.common.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory(2)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(24 << 20)
    ctypes.memset(block, 1, 24 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
libc.malloc.argtypes = [ctypes.c_size_t]
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_large_block_finds_its_pages_again() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
        for how in ("kept", "plain")
    }
    assert found["kept"] < 100
    assert found["plain"] >= found["kept"]
