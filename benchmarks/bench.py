"""What every cell needs: device, repetitions, workload, frozen models that share one set of weights."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import torch

from abmll.common.config import ModelConfig
from abmll.language.base import Base, load_base, resolve_device, resolve_dtype
from benchmarks.pairs import Rounds, interleave
from benchmarks.workload import Workload, load_workload

Dtype = Literal["fp32", "bf16"]
T = TypeVar("T")


def announce(line: str) -> None:
    """Say what is going on, on stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Bench:
    """One run's settings. ``quick`` measures every row once, to see that it works: its numbers mean nothing."""

    model: str = ModelConfig.model
    device: str = "cpu"
    quick: bool = False
    data_dir: Path | None = None
    repetitions: int = 7
    loaded: dict[Dtype, Base] = field(default_factory=dict)

    @cached_property
    def workload(self) -> Workload:
        """The tasks, fetched on first use."""
        return load_workload(announce, self.data_dir)

    @property
    def on_gpu(self) -> bool:
        """Whether it is a CUDA device that is measured."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> Dtype:
        """The precision that ``--dtype auto`` takes here: the main rows are measured in it."""
        return "bf16" if resolve_dtype("auto", resolve_device(self.device)) == "bf16" else "fp32"

    @property
    def other_dtype(self) -> Dtype:
        """The other precision: a few rows on small batches, because it may be many times slower here."""
        return "fp32" if self.dtype == "bf16" else "bf16"

    def base(self, dtype: Dtype | None = None) -> Base:
        """A model of its own to change at will; its weights are shared with every other one of that precision."""
        dtype = dtype or self.dtype
        if dtype not in self.loaded:
            self.loaded[dtype] = load_base(ModelConfig(self.model, dtype, self.device), announce, quiet=True)
        return self.loaded[dtype].twin()

    def rounds(self, contenders: Mapping[str, Callable[[int], object]]) -> Rounds:
        """Time ``contenders`` side by side."""
        if self.quick:
            return interleave(contenders, 1, warmup=0, smoke=True, synchronize=self.synchronize)
        return interleave(contenders, self.repetitions, synchronize=self.synchronize)

    def faster_attention(self, make: Callable[[str], T], work: Callable[[T], object]) -> T:
        """What ``make`` makes with transformers' eager or sdpa attention, whichever does the ``work`` faster here."""
        if self.quick:
            return make("sdpa")
        timed: list[tuple[float, T]] = []
        for attention in ("eager", "sdpa"):
            made = make(attention)
            work(made)
            started = time.perf_counter()
            work(made)
            timed.append((time.perf_counter() - started, made))
        return min(timed, key=lambda entry: entry[0])[1]

    def synchronize(self) -> None:
        """Wait until the device has done all it was asked to do."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
