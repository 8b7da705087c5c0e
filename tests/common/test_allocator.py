"""Freed memory stays with the process, where the C library can be told so."""

import platform
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


# Blocks of a megabyte are freed below others that stay: does the process give their pages back?
HOLES = """
import ctypes, re, time
from pathlib import Path
from abmll.common.allocator import giving_back, keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000
blocks = [libc.malloc(1 << 20) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[::2]:
    libc.free(block)
before, end = resident(), time.monotonic() + 60
with giving_back(0.05):
    while resident() > before - 80 and time.monotonic() < end:
        time.sleep(0.05)
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_freed_memory_between_blocks_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, check=True)
    assert float(done.stdout) > 80  # of 100 MB that were freed
