"""Outer steps against the number of processes that share their episodes. torchrun starts this module in each of them:

python -m torch.distributed.run --standalone --nproc-per-node N -m benchmarks.torchrun MODEL DATA_DIR STEPS
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from abmll.common.processes import Processes, together
from abmll.model.meta_learner import AbmllModel
from abmll.training.trainer import MetaTrainer
from benchmarks.bench import Bench
from benchmarks.contenders import Setting
from benchmarks.pairs import Rounds
from benchmarks.rows import Row
from benchmarks.trends import timed

EPISODES = 4  # of an outer step
SETTING = Setting(batch_size=2, inner_steps=1)
ROUNDS = 3


def processes(bench: Bench) -> list[Row]:
    """An outer step of four episodes, by 1, 2 and 4 processes of one thread each, as far as there are cores."""
    counts = [count for count in (1, 2, 4) if count <= (os.cpu_count() or 1)]
    seconds: dict[str, list[float]] = {str(count): [] for count in counts}
    for _ in range(1 if bench.quick else ROUNDS):
        for count in counts:
            seconds[str(count)] += measured(bench, count)
    return [timed(f"processes, an outer step of {EPISODES} episodes ({SETTING.label(bench)})", Rounds(seconds), -0.8)]


def measured(bench: Bench, count: int) -> list[float]:
    """Seconds of outer steps, in so many processes that have taken one already. Raises ``RuntimeError``."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "benchmarks.torchrun"]
    about = [bench.model, str(bench.data_dir or ""), "1" if bench.quick else "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *torchrun, *about], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{count} processes: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def steps(bench: Bench, count: int, processes: Processes) -> list[float]:
    """What this process, together with the others, measures."""
    model = AbmllModel(bench.base(), SETTING.adapter(), bench.workload.prompt)
    config = SETTING.train(meta_batch=EPISODES, max_steps=EPISODES * (count + 1), save_steps=EPISODES * (count + 1))
    trainer = MetaTrainer(model, bench.workload.train, config, processes=processes)
    state, seconds = trainer.rule.init(model.theta), []
    for number in range(count + 1):
        started = time.perf_counter()
        trainer.outer_step.take(state, number * EPISODES)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main(model: str, data_dir: str, count: str) -> None:
    """Measure, and print the seconds once."""
    torch.set_num_threads(1)
    with together() as others:
        found = steps(Bench(model, data_dir=Path(data_dir) if data_dir else None), int(count), others)
        if others.is_first:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
