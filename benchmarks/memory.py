"""Peak memory by the operating system's account, a fresh process for every measurement.

On Linux it is the kernel's high-water mark of the process's resident memory (VmHWM): ``ru_maxrss`` also remembers the
parent it was forked from. On a GPU it is the peak of what torch has allocated there.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def measure(case: str, settings: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of bytes that ``python -m benchmarks.peak_cases`` reports of one case. Raises ``RuntimeError``."""
    command = [sys.executable, "-m", "benchmarks.peak_cases", case, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has had at any time."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory this process has now (Linux; elsewhere its peak)."""
    return _status("VmRSS") if STATUS.exists() else peak_bytes()


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{STATUS} has no {key}")
