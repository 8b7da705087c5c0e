"""What a piece of work costs: forward passes, those that lead to a gradient, tokens, seconds, and peak memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from abmll.language.scorer import OptionScorer

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Cost:
    """Of one piece of work. A pass counts once whatever the number of examples in it."""

    seconds: float = 0.0
    forward_passes: int = 0
    gradient_passes: int = 0  # of the forward passes, those that a gradient is taken of
    tokens: int = 0  # read by all passes, padding included
    peak_memory_mb: float | None = None  # of the process, the frozen model included; None where it cannot be known

    def of_run(self) -> dict[str, float]:
        """As a run's folder has it."""
        counts = {"steps": self.gradient_passes, "tokens": self.tokens, "forward_passes": self.forward_passes}
        return {"seconds": self.seconds, **counts}


@contextmanager
def metered(scorer: OptionScorer) -> Iterator[Cost]:
    """What the block makes the scorer's model do; complete once the block has ended. Not within another one."""
    on_gpu = scorer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(scorer.device)
    else:
        with suppress(OSError):  # Linux alone offers this, and not in every container
            _RESET.write_text("5", encoding="ascii")
    with counted(scorer) as cost:
        yield cost
    cost.peak_memory_mb = torch.cuda.max_memory_allocated(scorer.device) / 1e6 if on_gpu else _process_peak()


@contextmanager
def counted(scorer: OptionScorer) -> Iterator[Cost]:
    """The same but for the memory: of parts of what is metered."""
    cost, before, started = Cost(), replace(scorer.passes), time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        cost.forward_passes = scorer.passes.forward - before.forward
        cost.gradient_passes = scorer.passes.gradient - before.gradient
        cost.tokens = scorer.passes.tokens - before.tokens


def _process_peak() -> float | None:
    """The most memory in MB that the process has held since the operating system was told to forget it."""
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None
