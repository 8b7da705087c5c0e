"""Cells on waiting: whole processes, from the command to what it was called for."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from abmll.language import embedded
from abmll.model.run_folder import METRICS
from abmll.tasks import render
from benchmarks.bench import Bench, announce
from benchmarks.rows import Row, timed
from benchmarks.workload import SUITE

POLL = 0.005  # seconds between looks at a file that is to appear


def commands(bench: Bench) -> list[Row]:
    """``abmll --help`` and ``import abmll`` / ``python -c "import torch"``."""
    rounds = bench.rounds(
        {
            "help": _process("-m", "abmll", "--help"),
            "import": _process("-c", "import abmll"),
            "python": _process("-c", "pass"),
            "torch": _process("-c", "import torch"),
        }
    )
    return [
        timed("abmll --help / import torch", rounds, "help", "torch", 0.35),
        timed("import abmll / import torch", rounds, "import", "torch", 0.20),
        timed("python alone / import torch", rounds, "python", "torch"),
    ]


def first_step(bench: Bench) -> list[Row]:
    """From the command to the first finished gradient step: ``abmll train`` / a script with PEFT and Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        task = bench.workload.train[0]
        rendered = [(render(example, task.name, bench.workload.prompt), example.answer) for example in task.train[:4]]
        pairs = [(one.prefix + one.input + one.suffix, one.continuations[answer or 0]) for one, answer in rendered]
        texts.write_text(json.dumps(pairs), encoding="utf-8")
        plain = [sys.executable, "-m", "benchmarks.plain_script", model_folder(bench), bench.device, str(texts)]
        rounds = bench.rounds({"abmll": lambda number: _train(bench), "plain": lambda number: _until_line(plain)})
    return [timed("command to first step: abmll train / PEFT LoRA + Trainer", rounds, "abmll", "plain")]


def model_folder(bench: Bench) -> str:
    """Where the run's model lies on the disk."""
    return str(embedded.embedded_model(announce)) if bench.model == embedded.NAME else bench.model


def _train(bench: Bench) -> None:
    """Start ``abmll train``, wait for the first line of its metrics, end it."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / METRICS
        settings = {"tasks": SUITE, "max-steps": "1", "inner-steps": "1", "output-dir": str(metrics.parent)}
        settings |= {"model": bench.model, "device": bench.device}
        if bench.data_dir is not None:
            settings["tasks"] = str(bench.data_dir)
        flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
        command = [sys.executable, "-m", "abmll", "train", *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(POLL)
        _end(process, metrics.exists(), command)


def _until_line(command: list[str]) -> None:
    """Start a process, wait for the first line it prints, end it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    _end(process, bool(line), command)


def _end(process: "subprocess.Popen[bytes]", reached: bool, command: Sequence[str]) -> None:
    process.kill()
    _, errors = process.communicate()
    if not reached:
        raise RuntimeError(f"{' '.join(command[1:4])}: {errors.decode().strip()}")


def _process(*arguments: str) -> Callable[[int], object]:
    """A function that runs a whole Python process to its end."""

    def run(number: int) -> None:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"python {' '.join(arguments)}: {done.stderr.strip()}")

    return run
