"""Every executor: units are done once, a worker that dies is retried, one that always dies leaves the others alone."""

import importlib.util
import math
import multiprocessing
import os
import re
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from abmll.common.errors import AbmllError
from abmll.common.files import disk_errors
from abmll.experiments.executors.choice import choose
from abmll.experiments.executors.local_processes import LocalProcesses
from abmll.experiments.executors.submitit_jobs import SubmititJobs
from abmll.experiments.executors.work import ATTEMPTS, Executor, Lost, work_through
from tests.experiments.executors.fragile_work import Fragile, is_alive, work
from tests.experiments.executors.slurm_stand_in import install

ROOT = Path(__file__).parents[3]
NO_SUBMITIT = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the tests' own work, and the package, by name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(params=["local", pytest.param("submitit", marks=NO_SUBMITIT), pytest.param("slurm", marks=NO_SUBMITIT)])
def executor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """Two workers of each kind."""
    if request.param == "local":
        return LocalProcesses(2)
    if request.param == "submitit":
        return SubmititJobs(tmp_path / "jobs", "local", {}, 2)
    import submitit

    install(tmp_path / "bin")
    (tmp_path / "slurm").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(tmp_path / "slurm"))
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 1)  # the disk is that of this computer
    return SubmititJobs(tmp_path / "jobs", "slurm", {"slurm_partition": "gpu", "timeout_min": 7}, 2)


def test_every_unit_is_done_once(executor: Executor, tmp_path: Path) -> None:
    units = [Fragile(tmp_path, name) for name in "abcd"]
    assert dict(work_through(units, work, executor)) == {unit: unit.name.upper() for unit in units}
    assert [unit.notes() for unit in units] == [["begun", "done"]] * 4
    assert not (tmp_path / "jobs").exists()
    assert list(work_through([], work, executor)) == []


def test_who_dies_is_replaced_and_the_others_go_on(executor: Executor, tmp_path: Path) -> None:
    well, ill, dead = units = [Fragile(tmp_path, name, deaths) for name, deaths in (("a", 0), ("b", 1), ("c", 99))]
    found = dict(work_through(units, work, executor))
    assert (found[well], found[ill]) == ("A", "B")
    assert (well.notes(), ill.notes()) == (["begun", "done"], ["begun", "begun", "done"])
    lost = found[dead]
    assert isinstance(lost, Lost)
    assert lost.reason.endswith(f"({ATTEMPTS} attempts)")
    assert dead.notes() == ["begun"] * ATTEMPTS
    if isinstance(executor, SubmititJobs):  # the log that is named is there
        [log] = [Path(word) for word in lost.reason.split() if word.endswith("log.err")]
        assert log.exists()
        assert list(tmp_path.rglob("*.pkl")) == []


def test_a_defect(executor: Executor, tmp_path: Path) -> None:
    units = [Fragile(tmp_path, name) for name in ("defect", "a")]
    if isinstance(executor, LocalProcesses):
        with pytest.raises(ZeroDivisionError, match="a defect"):
            list(work_through(units, work, executor))
    else:
        found = dict(work_through(units, work, executor))
        assert found[units[0]] == Lost("ZeroDivisionError: a defect", again=False)
        assert units[0].notes() == ["begun"]
        assert found[units[1]] == "A"
        [log] = [path for path in tmp_path.rglob("*.err") if "a defect" in path.read_text()]
        assert "Traceback" in log.read_text()
    assert multiprocessing.active_children() == []


def test_whoever_stops_ends_the_workers(executor: Executor, tmp_path: Path) -> None:
    units = [Fragile(tmp_path, "long", seconds=3600), Fragile(tmp_path, "a", seconds=2)]
    with closing(work_through(units, work, executor)) as done:
        assert next(done) == (units[1], "A")
    _, pid = units[0].notes()
    until = time.monotonic() + 60  # Slurm does not say when a job that it has killed is gone
    while is_alive(int(pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(int(pid))


@NO_SUBMITIT
@pytest.mark.parametrize("executor", ["slurm"], indirect=True)
def test_slurm_is_asked_for_one_array(executor: Executor, tmp_path: Path) -> None:
    list(work_through([Fragile(tmp_path, name) for name in "abc"], work, executor))
    [script] = (tmp_path / "slurm").glob("*.sh")
    lines = script.read_text().splitlines()
    wanted = ["array=0-2%2", "partition=gpu", "time=7", "job-name=abmll"]
    assert [line for line in wanted if f"#SBATCH --{line}" not in lines] == []


@NO_SUBMITIT
def test_who_is_preempted_goes_back_into_the_queue(tmp_path: Path) -> None:
    unit = Fragile(tmp_path, "a", deaths=1, signal=signal.SIGUSR2)  # as Slurm announces it to submitit
    workers = SubmititJobs(tmp_path / "jobs", "local", {}, 1)
    with workers.workers(work, 1) as queue:
        [job] = queue.submit([unit])
        until = time.monotonic() + 120
        while not queue.finished([job]) and time.monotonic() < until:
            pass
        assert queue.outcome(job) == "A"  # the same job
    assert unit.notes() == ["begun", "begun", "done"]


@NO_SUBMITIT
@pytest.mark.parametrize("executor", ["slurm"], indirect=True)
def test_the_options_on_the_page(executor: Executor, tmp_path: Path) -> None:
    page = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(# slurm.yaml\n.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    asked = choose("submitit", [str(path)], None, tmp_path)
    list(work_through([Fragile(tmp_path, name) for name in "ab"], work, asked))
    [script] = (tmp_path / "slurm").glob("*.sh")
    wanted = [
        "time=240",
        "gpus-per-node=1",
        "cpus-per-task=4",
        "mem=32GB",
        "partition=gpu",
        "account=mine",
        "array=0-1%2",
    ]
    lines = script.read_text().splitlines()
    assert [line for line in wanted if f"#SBATCH --{line}" not in lines] == []


def test_one_process_is_this_one() -> None:
    assert [result for _, result in work_through([4.0], math.sqrt, LocalProcesses(8))] == [2.0]
    with pytest.raises(AbmllError, match="cannot write"), disk_errors("x"):
        list(work_through(["/nowhere/at/all"], os.rmdir, LocalProcesses(1)))
