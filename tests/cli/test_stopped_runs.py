"""Runs that stop before their end: what they say, what they keep, and how they go on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.methods import rule
from tests.cli.conftest import INTERRUPTIBLE

Call = Callable[..., Any]
RUN = "--output-dir out --save-steps 1 --max-steps 4"


def episodes_of(folder: str) -> list[int]:
    path = Path(folder, "metrics.jsonl")
    return [json.loads(line)["episode"] for line in path.read_text().splitlines()] if path.exists() else []


def leftovers(root: Path) -> list[Path]:
    """What an unfinished write leaves behind."""
    return [path for path in root.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture
def uninterrupted(work: Any, abmll: Call) -> bytes:
    """Theta at the end of the same run in one go."""
    assert abmll(work.train, RUN, "--output-dir whole").code == 0
    return Path("whole/checkpoint-4/theta.safetensors").read_bytes()


def test_a_loss_that_is_no_number(
    work: Any, abmll: Call, uninterrupted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = rule.nll, []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return honest(*arguments) * (float("nan") if len(calls) > 5 else 1)  # in the second step of the third episode

    with monkeypatch.context() as patch:
        patch.setattr(rule, "nll", broken)
        code, out, err = abmll(work.train, RUN, "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("abmll: error: episode 3, task 'toy")
    assert err.endswith("': step 2: the loss term 'nll' is nan; lower the learning rates\n")
    assert episodes_of("out") == [1, 2]
    assert abmll(work.train, RUN, "--resume").code == 0
    assert Path("out/checkpoint-4/theta.safetensors").read_bytes() == uninterrupted


def test_learning_rates_beyond_all_measure(work: Any, abmll: Call) -> None:
    code, _, err = abmll(work.train, RUN, "--learning-rate 1e15 --quiet")
    assert code == 2
    assert err.startswith("abmll: error: episode 1, task 'toy")
    assert "the loss term '" in err
    assert err.count("\n") == 1


def test_parameters_that_do_not_move(work: Any, abmll: Call) -> None:
    code, _, err = abmll(work.train, RUN, "--outer-learning-rate 0 --outer-scale-learning-rate 0 --quiet")
    assert code == 2
    assert "': the mean of theta did not move in the first episode; are the learning rates zero?\n" in err
    assert not list(Path("out").glob("checkpoint-*"))


def test_a_disk_that_fills_up(work: Any, abmll: Call, uninterrupted: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.fsync

    def full(descriptor: int) -> None:
        if episodes_of("out")[2:]:  # the third episode is learned, and about to be saved
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, err = abmll(work.train, RUN, "--quiet")
    assert code == 2
    assert err.startswith("abmll: error: cannot write out/checkpoint-3: ")
    assert err.endswith("No space left on device; free some space or choose another folder\n")
    assert leftovers(work.root) == []
    assert abmll(work.train, RUN, "--resume").code == 0
    assert episodes_of("out") == [1, 2, 3, 4]
    assert Path("out/checkpoint-4/theta.safetensors").read_bytes() == uninterrupted


def test_ctrl_c_before_the_first_checkpoint(work: Any, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rule, "nll", interrupted)
        code, out, err = abmll(work.train, RUN, "--quiet")
    assert (code, out) == (130, "")
    again = "run the same command with --overwrite: no checkpoint was due yet"
    assert err == f"abmll: interrupted: out: {again}\n"
    assert abmll(work.train, RUN, "--overwrite").code == 0


WRITE = {
    "adapt": "adapt toy3.jsonl --theta run --output-dir out --steps 1",
    "predict": "predict new --input toy3.jsonl --output out.jsonl --num-samples 0",
    "evaluate": "evaluate run --suite suite.yaml --output-dir out --steps 1 --num-samples 0",
    "peft": "export new --format peft --output-dir out",
    "merged": "export new --format merged --output-dir out",
}


@pytest.mark.parametrize("verb", WRITE)
def test_ctrl_c_while_writing(verb: str, work: Any, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert abmll(WRITE[verb], "--quiet") == (130, "", "abmll: interrupted\n")
    assert leftovers(work.root) == []
    assert not Path("out.jsonl").exists()
    assert not Path("out").is_dir() or not list(Path("out").iterdir())
    assert abmll(WRITE[verb]).code == 0


def test_ctrl_c_in_the_middle_of_a_run(work: Any, abmll: Call) -> None:
    endless = f"{work.train} --output-dir out --save-steps 1 --save-total-limit 3 --max-steps 100000"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *endless.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        waited_until = time.monotonic() + 600  # only so that a defect does not hang the tests
        while not Path("out/checkpoint-3").exists() and process.poll() is None and time.monotonic() < waited_until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    prefix = "abmll: interrupted: out: run the same command with --resume to go on from episode "
    assert last.startswith(prefix)
    assert "Traceback" not in err
    assert out == ""
    episode = int(last.removeprefix(prefix))
    assert episode >= 3
    assert Path(f"out/checkpoint-{episode}").is_dir()
    end = episode + 2
    assert abmll(endless.replace("100000", str(end)), "--resume").code == 0
    assert episodes_of("out") == list(range(1, end + 1))
    assert leftovers(work.root) == []
