"""Cells on how well a device is kept busy: a step beside plain LoRA's, compiled too, in tokens a second and as MFU.

MFU is the share of the device's peak that goes into the operations of ``floors.step_cost``, which no step can do
without: real tokens alone, a shared prefix once. The peak is the maker's (``abmll estimate`` has it) or, of a device
that is not known there, the speed of a large matrix product here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from abmll.common.config import ContinuedConfig
from abmll.experiments.costs.gpus import GPUS
from abmll.experiments.costs.shapes import config_of
from abmll.language.bucket import Bucket
from abmll.methods import Loss, Support, make_rule
from abmll.model.meta_learner import AbmllModel
from benchmarks.bench import Bench
from benchmarks.contenders import NUMBERS, PEERS, Ours, Setting, batches_of
from benchmarks.data import answered
from benchmarks.floors import matmul_speed, side, step_cost
from benchmarks.machine import ROOT
from benchmarks.members import LEARNED, MEMBERS
from benchmarks.pairs import Rounds, Spread
from benchmarks.rows import Row, absolute, timed
from benchmarks.small import random_model

PLAIN = next(iter(PEERS))
STEP_TARGET, MEMBERS_TARGET = 0.8, 1.5  # of a GPU
LARGE, FOLDER = "llama3-8b", ROOT / "runs" / "benchmarks" / "large"
WARM = 3  # calls of a compiled step: compiled, recorded as a CUDA graph, replayed
STEPS, BATCH_SIZE = 8, 4


class Compiled(Ours):
    """A compiled step in weight space; all batches are filled up to one shape, as in an adaptation."""

    def __init__(self, bench: Bench, setting: Setting) -> None:
        super().__init__(bench, setting, compile=True)
        if bench.quick:
            self.model.compile("eager")
        examples = [one for number in range(NUMBERS) for one in batches_of(self, number)[0]]
        self.bucket = Bucket.of_any(examples, setting.batch_size)
        for _ in range(WARM):
            self.step(0)

    def step(self, number: int) -> Loss:
        batch = replace(next(self.episodes.batches(number)), bucket=self.bucket)
        return self.rule.inner_step(self.state, batch, self.episodes.generator(number, 0), 1.0)


def steps(bench: Bench, setting: Setting) -> list[Row]:
    """An inner step / plain LoRA's, plain and compiled; what each reads in a second, and ours as MFU."""
    ours = Ours(bench, setting)
    made: dict[str, Any] = {
        "weight space": ours,
        "output space": Ours(bench, setting, space="output"),
        "weight space, compiled": Compiled(bench, setting),
        PLAIN: PEERS[PLAIN](bench, setting, ours),
    }
    rounds = bench.rounds({name: one.step for name, one in made.items()})
    label, target = setting.label(bench), STEP_TARGET if bench.on_gpu else None
    rows = [timed(f"step, {name} / {PLAIN} ({label})", rounds, name, PLAIN, target) for name in made if name != PLAIN]
    batches = [batches_of(ours, number)[0] for number in numbers(bench, rounds)]
    for name in made:
        length = answered if name == PLAIN else len
        read = [sum(map(length, batch)) for batch in batches]
        spread = Spread.of([count / seconds for count, seconds in zip(read, rounds.seconds[name], strict=True)])
        rows.append(absolute(f"step, {name} ({label})", spread, "tokens/s"))
    peak, whose = peak_speed(bench, setting)
    needed = [step_cost(ours, batch)[0] for batch in batches]
    for name in ("weight space", "weight space, compiled"):
        shares = [100 * one / seconds / peak for one, seconds in zip(needed, rounds.seconds[name], strict=True)]
        rows.append(absolute(f"MFU of a step, {name} ({label})", Spread.of(shares), "%", f"of {whose}"))
    return rows


def large_steps(bench: Bench) -> list[Row]:
    """The same on random weights in the shape of an 8B model, which is written to ``FOLDER`` once (16 GB)."""
    if bench.quick:
        return steps(bench, Setting())
    model = random_model(FOLDER, config_of(LARGE), torch.bfloat16)
    return steps(Bench(model, bench.device, data_dir=bench.data_dir), Setting(dtype="bf16"))


def members(bench: Bench) -> list[Row]:
    """Learning a task by five members side by side / by one, on the device's clock (``members`` counts operations)."""
    model = AbmllModel(bench.base(), Setting().adapter(), bench.workload.prompt)
    task = bench.workload.evaluation[0]
    encoded = model.scorer.encode(task.train[:20], task.name)

    def learning(method: str) -> Callable[[int], object]:
        rule = make_rule(model.scorer, ContinuedConfig(method=method, ensemble_size=MEMBERS), 1)
        return lambda number: rule.adapt(model.theta, Support(model.scorer, encoded, STEPS, BATCH_SIZE, seed=number))

    target, rows = MEMBERS_TARGET if bench.on_gpu else None, []
    for several, one in LEARNED.items():
        rounds = bench.rounds({"several": learning(several), "one": learning(one)})
        name = f"{STEPS} steps of adaptation, {MEMBERS} members ({several}) / one ({Setting().label(bench)})"
        rows.append(timed(name, rounds, "several", "one", target))
    return rows


def numbers(bench: Bench, rounds: Rounds) -> range:
    """What the rounds that were timed were called with: a trial run has no round before them."""
    first = 0 if bench.quick else 1
    return range(first, first + len(rounds.seconds[PLAIN]))


def peak_speed(bench: Bench, setting: Setting) -> tuple[float, str]:
    """Operations a second of the device's matrix products at best, and whose number that is."""
    dtype = setting.dtype or bench.dtype
    if bench.on_gpu:
        name = torch.cuda.get_device_name(bench.device).lower()
        for key, gpu in GPUS.items():
            if key in name:
                return gpu.peak[dtype], f"{gpu.name} (SXM) by its data sheet, {gpu.peak[dtype] / 1e12:.0f} TFLOP/s"
    long = side(bench)
    speed = matmul_speed(bench, torch.bfloat16 if dtype == "bf16" else torch.float32, long).median
    return speed * 1e9, f"a matrix product here, {long} cubed, {speed:.0f} GFLOP/s"
