"""One, two and four processes learn the same, bit for bit; one that dies or breaks ends the run, which goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.methods import REGISTRY
from tests.conftest import toy_task

SECONDS = 900  # after which processes that wait for each other are given up
FILES = ("metrics.jsonl", "validation.jsonl", "config.yaml")
RULES: tuple[dict[str, Any], ...] = (
    {"method": "abmll", "eval_steps": 4, "eval_examples": 4, "eval_test_examples": 5, "eval_adapt_steps": 2},
    {"method": "abmll", "space": "output", "max_grad_norm": 0.1},
    {"method": "structured-lora"},
    {"method": "regular-lora", "lr_scheduler_type": "cosine"},
    {"method": "reptile", "meta_batch": 8, "save_steps": 8},
    {"method": "maml", "meta_batch": 6, "max_steps": 12, "save_steps": 6},
    {"method": "abml"},
    {"method": "fomaml"},
    {"method": "trained-head"},
    {"method": "metaicl", "num_demonstrations": 2},
    {"method": "abmll-icl", "num_demonstrations": 2},
    {"method": "abmll", "load_in_int8_torchao": True, "gradient_checkpointing": True},
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for number in range(5):
        rows = [
            {"id": one.id, "input": one.input, "options": list(one.options), "answer": one.answer}
            | {"split": "test" if index >= 40 else "train"}
            for index, one in enumerate(toy_task(f"toy{number}", number).examples)
        ]
        lines = "\n".join(json.dumps({"task": f"toy{number}", **row}) for row in rows)
        (folder / f"toy{number}.jsonl").write_text(lines + "\n", encoding="utf-8")
    return folder


def start(processes: int, *command: str) -> "subprocess.CompletedProcess[str]":
    """The command in so many processes, each with one thread."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "--"]
    whole = [sys.executable, *(torchrun if processes > 1 else ["-m"]), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=SECONDS)


@pytest.fixture
def run(tiny_llama: Path, tasks: Path, tmp_path: Path) -> Run:
    """Trainings one after the other in ``name``-0, ``name``-1, ... by so many processes."""

    def train(processes: int, name: str, *settings: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
        runs = [{"output_dir": str(tmp_path / f"{name}-{number}"), **one} for number, one in enumerate(settings)]
        return start(processes, "tests.training.several", str(tiny_llama), str(tasks), json.dumps(runs))

    return train


def contents(folder: Path) -> dict[str, bytes]:
    """What a run has learned and measured."""
    found = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    found |= {str(one.relative_to(folder)): one.read_bytes() for one in folder.glob("checkpoint-*/*.safetensors")}
    if (folder / "calibration.json").exists():
        found["prior"] = json.dumps(json.loads((folder / "calibration.json").read_text())["prior"]).encode()
    return {name: data.replace(folder.name.encode(), b"") for name, data in found.items()}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.startswith("checkpoint-") for name in ours)


def test_every_rule_that_is_trained_is_among_them() -> None:
    assert {one["method"] for one in RULES} == {name for name, rule in REGISTRY.items() if rule.is_trained}


def test_any_number_of_processes_learns_the_same_bits(run: Run, tmp_path: Path) -> None:
    for count, rules in ((1, RULES), (2, RULES), (4, RULES[:1])):
        ended = run(count, f"of{count}", *rules)
        assert ended.returncode == 0, ended.stderr
        for number in range(len(rules)):
            assert_same(tmp_path / f"of1-{number}", tmp_path / f"of{count}-{number}")
    assert (tmp_path / "of2-0/validation.jsonl").read_text().count("\n") == 2
    assert "prior" in contents(tmp_path / "of4-0")


def test_another_number_of_processes_goes_on(run: Run, tmp_path: Path) -> None:
    rules = RULES[0], RULES[2]
    assert run(1, "whole", *rules).returncode == 0
    assert run(2, "parts", *({**one, "max_steps": 4} for one in rules)).returncode == 0
    ended = run(4, "parts", *({**one, "resume": True} for one in rules))
    assert ended.returncode == 0, ended.stderr
    for number in range(2):
        assert_same(tmp_path / f"whole-{number}", tmp_path / f"parts-{number}")


def test_a_killed_process_ends_the_run_which_goes_on(run: Run, tmp_path: Path) -> None:
    ended = run(2, "killed", {**RULES[0], "die": 5})
    assert ended.returncode != 0
    assert (tmp_path / "killed-0/checkpoint-4").is_dir()
    assert not (tmp_path / "killed-0/checkpoint-8").exists()
    assert run(2, "killed", {**RULES[0], "resume": True}).returncode == 0
    assert run(1, "whole", RULES[0]).returncode == 0
    assert_same(tmp_path / "whole-0", tmp_path / "killed-0")


def test_what_breaks_in_one_process_ends_all_and_is_said_once(run: Run, tmp_path: Path) -> None:
    ended = run(2, "broken", {**RULES[0], "break_at": 5})
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if "the loss term 'nll' is nan" in line]
    own, told = sorted(said, key=lambda line: line.startswith("ReportedError"))
    assert own.startswith("TrainingError 1: episode 6, task 'toy")
    assert told.startswith("ReportedError 0: process 1: episode 6, task 'toy")
    assert (tmp_path / "broken-0/metrics.jsonl").read_text().count("\n") == 4


def test_the_command_in_two_processes(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    def train(processes: int, folder: str, *more: str) -> "subprocess.CompletedProcess[str]":
        settings = ["--tasks", str(tasks), "--output-dir", str(tmp_path / folder), "--meta-batch", "2"]
        settings += ["--model", str(tiny_llama), "--max-steps", "4", "--save-steps", "2", "--inner-steps", "2"]
        settings += ["--dtype", "fp32", "--device", "cpu", "--r", "2", "--layers-to-transform", "1"]
        return start(processes, "abmll", "train", *settings, *more)

    alone, both = train(1, "alone"), train(2, "both")
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    theta = "checkpoint-4/theta.safetensors"
    assert (tmp_path / "both" / theta).read_bytes() == (tmp_path / "alone" / theta).read_bytes()
    assert both.stdout.count("gradient steps") == 1
    assert (tmp_path / "both/report.html").exists()
    taken = train(2, "both")
    assert taken.returncode != 0
    assert taken.stderr.count("holds a run already; continue it with --resume or replace it with --overwrite") == 1
    few = train(4, "few")
    assert few.stderr.count("error: meta_batch is 2, but 4 processes share out the episodes of an outer step") == 1
    assert not (tmp_path / "few").exists()


def test_processes_that_share_the_base_learn_the_same(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held out"  # three for two processes: one of them has more to do
    held_out.mkdir()
    for number in range(3):
        (tasks / f"toy{number}.jsonl").rename(held_out / f"toy{number}.jsonl")

    def train(processes: int, folder: str, *more: str) -> "subprocess.CompletedProcess[str]":
        settings = ["--tasks", str(tasks), "--output-dir", str(tmp_path / folder), "--meta-batch", "2"]
        settings += ["--model", str(tiny_llama), "--max-steps", "4", "--save-steps", "2", "--inner-steps", "2"]
        settings += ["--dtype", "fp32", "--device", "cpu", "--r", "2", "--layers-to-transform", "1"]
        settings += ["--calibration-tasks", "2", "--calibration-examples", "4", "--gradient-checkpointing"]
        settings += ["--eval-tasks", str(held_out), "--eval-test-examples", "6", "--eval-steps", "2"]
        return start(processes, "abmll", "train", *settings, *more)

    alone, both = train(1, "alone"), train(2, "both", "--shard-base")
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    theta, rows = "checkpoint-4/theta.safetensors", "validation.jsonl"
    assert (tmp_path / "both" / theta).read_bytes() == (tmp_path / "alone" / theta).read_bytes()
    assert (tmp_path / "both" / rows).read_text().count("\n") == 2
