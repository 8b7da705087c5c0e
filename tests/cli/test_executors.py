"""``abmll compare`` by jobs of submitit and tasks of Ray: the same cells, nothing twice, and what is refused."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import INTERRUPTIBLE

ROOT = Path(__file__).parents[2]
SECONDS = 400  # a minute where the machine has nothing else to do
JOBS = "--executor submitit --executor-options cluster=local --jobs 2"
PARTLY = {"cost", "command", "sha256"}  # of a cell: what says how it was computed, not what was found
Call = Callable[..., Any]


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture
def compare(work: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A comparison of a trained method and of two that share another one's run; workers are like this process.

    A test that fails leaves no jobs behind, which would train for hours.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield (
        f"compare --suite suite.yaml --model {work.model} --methods abmll,mc-dropout,blob --seeds 0 --dtype fp32 --r 2 "
        "--layers-to-transform 1 --max-steps 2 --save-steps 1 --inner-steps 2 --steps 2 --adapt-examples 6 "
        "--per-device-train-batch-size 4 --test-examples 5 --num-samples 2"
    )
    for process in workers() if sys.platform == "linux" else ():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def cells_of(folder: str) -> dict[str, Any]:
    """What was found in every cell, and the bytes of its predictions."""
    found = {}
    for path in sorted(Path(folder, "cells").rglob("*.json")):
        cell = json.loads(path.read_text())
        predictions = path.with_suffix(".predictions.jsonl").read_bytes()
        found[path.name] = {key: value for key, value in cell.items() if key not in PARTLY}, predictions
    return found


def commands(folder: str) -> list[str]:
    """Which command has computed each cell."""
    return [json.loads(path.read_text())["command"] for path in Path(folder, "cells").rglob("*.json")]


@contextmanager
def started(command: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process of its own, which has begun both of its training runs; it is killed at the end.

    What it says goes into a file: the jobs that outlive it would keep a pipe open.
    """
    with open("said", "wb") as said:
        process = subprocess.Popen([sys.executable, "-c", INTERRUPTIBLE, *command.split()], stdout=said, stderr=said)
    try:
        until = time.monotonic() + SECONDS
        while len({path.parent for path in Path().glob("out/runs/*/checkpoint-*")}) < 2 and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert process.poll() is None, Path("said").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def workers() -> list[int]:
    """The processes of submitit that work in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:  # it has ended
            continue
        if any("submitit" in word for word in words) and str(Path.cwd()) in "".join(words):
            found.append(int(path.parent.name))
    return found


@needs("submitit")
def test_jobs_find_the_same(compare: str, abmll: Call) -> None:
    assert abmll(compare, "--output-dir here").code == 0
    code, out, err = abmll(compare, JOBS, "--output-dir out")
    assert (code, err) == (0, "")
    assert "ABMLL" in out
    assert cells_of("out") == cells_of("here")
    assert len(cells_of("out")) == 3
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == ["cells", "runs"]


@needs("submitit")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_jobs_of_a_killed_command_are_waited_for(compare: str, abmll: Call) -> None:
    command = f"{compare.replace('--max-steps 2', '--max-steps 60')} --output-dir out"
    with started(f"{command} {JOBS}") as process:
        process.send_signal(signal.SIGKILL)
    assert workers() != []
    assert abmll(command).code == 0
    assert [words for words in commands("out") if "submitit" not in words] == []
    assert len(commands("out")) == 3
    assert not list(Path("out").rglob(".*.tmp"))


@needs("submitit")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_cancels_the_jobs(compare: str, abmll: Call) -> None:
    command = f"{compare.replace('--max-steps 2', '--max-steps 100000')} --output-dir out"
    with started(f"{command} {JOBS}") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=SECONDS) == 130
    assert (
        Path("said").read_text().splitlines()[-1]
        == "abmll: interrupted: out: run the same command to go on; what is finished is kept"
    )
    assert workers() == []
    assert cells_of("out") == {}


# In a process of its own, as Ray starts others and takes hold of the process that it is started in.
DRIVER = """
import json, sys, time
from contextlib import closing
from pathlib import Path
import ray
from abmll.cli.main import entry
from abmll.experiments.executors.choice import choose
from abmll.experiments.executors.work import Lost, work_through
from tests.experiments.executors.fragile_work import Fragile, is_alive, work

folder = Path.cwd()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
try:
    executor = choose("ray", ["num_cpus=1"], None, folder)
    units = [Fragile(folder, *of) for of in (("a", 0), ("b", 1), ("c", 99), ("defect", 0))]
    found = dict(work_through(units, work, executor))
    said = [one.reason if isinstance(one, Lost) else one for one in map(found.get, units)]

    slow, quick = Fragile(folder, "long", seconds=3600), Fragile(folder, "quick", seconds=3)
    with closing(work_through([slow, quick], work, executor)) as done:
        first, _ = next(done)
    _, pid = slow.notes()
    until = time.monotonic() + 60
    while is_alive(int(pid)) and time.monotonic() < until:
        time.sleep(0.05)
    ray.shutdown()
    code = entry(sys.argv[1:])  # with a Ray of its own
    print(json.dumps([said, [unit.notes() for unit in units], first.name, is_alive(int(pid)), code]))
finally:
    ray.shutdown()
"""


@needs("ray")
def test_two_workers_of_ray(compare: str, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    words = f"{compare} --executor ray --executor-options num_cpus=0.5 --output-dir out".split()
    done = subprocess.run([sys.executable, "-c", DRIVER, *words], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("[[")]  # Ray says more
    said, notes, first, is_alive, code = json.loads(line)
    assert said[:2] == ["A", "B"]
    died = "its worker of Ray has ended (WorkerCrashedError), perhaps for want of memory (3 attempts)"
    assert said[2:] == [died, "ZeroDivisionError: a defect"]
    assert notes == [["begun", "done"], ["begun", "begun", "done"], ["begun"] * 3, ["begun"]]
    assert (first, is_alive, code) == ("quick", False, 0)
    assert abmll(compare, "--output-dir here").code == 0
    assert cells_of("out") == cells_of("here")
    assert len(cells_of("out")) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--executor slurm", "compare: --executor is 'slurm'; use 'local', 'submitit' or 'ray'"),
        ("--executor-options num_gpus=1", "executor_options: they are for --executor submitit or ray"),
        ("--executor ray --executor-options num_gpu=1", "unknown setting 'num_gpu'. Did you mean 'num_gpus'?"),
        ("--executor ray --executor-options num_gpus=-1", "num_gpus is -1; use a finite number of 0 or more"),
        ("--executor ray --executor-options a=1,b", "'b' is neither NAME=VALUE nor the only file"),
        ("--executor ray --executor-options none.yaml", "none.yaml"),
        ("--executor ray --executor-options toy3.jsonl", "toy3.jsonl"),
        ("--executor submitit --executor-options cluster=lokal", "cluster is 'lokal'; use 'slurm' or 'local'."),
        ("--executor submitit", "executor: there is no Slurm here (no 'srun')"),
        (f"{JOBS} --executor-options cluster=local,slurm_partitions=a", "Unknown argument 'partitions'"),
        (f"{JOBS} --executor-options cluster=local,timeout_min=long", 'Parameter "timeout_min" expected type'),
    ],
)
@needs("submitit")
@needs("ray")
def test_refusals(
    flags: str, message: str, compare: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    refused(f"{compare} {flags}", message)


@pytest.mark.parametrize(("name", "extra"), [("submitit", "slurm"), ("ray", "ray")])
def test_without_the_library(
    name: str, extra: str, compare: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    refused(f"{compare} --executor {name}", f'install it with: pip install "abmll[{extra}]"')
