"""Trackers hold the numbers of metrics.jsonl; a library that is missing is named before anything is trained."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.errors import ConfigError
from abmll.tasks import Task

MakeTrainer = Callable[..., MetaTrainer]


@pytest.fixture
def make(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> MakeTrainer:
    def make(report_to: str, **settings: Any) -> MetaTrainer:
        short: dict[str, Any] = {"max_steps": 3, "save_steps": 2, "inner_steps": 2, "per_device_train_batch_size": 2}
        short |= {"lr_scheduler_type": "constant", "report_to": report_to}
        short |= {"eval_steps": 2, "eval_examples": 2, "eval_test_examples": 2, "eval_adapt_steps": 1}
        config = TrainConfig(output_dir=str(tmp_path / "run"), **short | settings)
        return MetaTrainer(tiny_model, toy_tasks[:2], config, eval_tasks=toy_tasks[2:])

    return make


def numbers(row: dict[str, Any]) -> dict[str, float]:
    left_out = ("episode", "task")
    return {f"train/{name}": value for name, value in row.items() if name not in left_out and value is not None}


def test_tensorboard_holds_the_metrics_of_both_parts(make: MakeTrainer, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make("tensorboard").train()
    trainer = make("tensorboard", max_steps=5)
    trainer.train(resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = trainer.folder.rows()
    evaluations = trainer.folder.rows("validation.jsonl")
    assert [row["episode"] for row in evaluations] == [2, 3, 4, 5]
    assert set(numbers(rows[0])) >= {"train/nll", "train/accuracy"}
    assert set(events.Tags()["scalars"]) == {*numbers(rows[0]), "eval/nll", "eval/accuracy"}
    for name in ("nll", "accuracy"):
        written = [(event.step, event.value) for event in events.Scalars(f"eval/{name}")]
        assert written == [(row["episode"], float(np.float32(row[name]))) for row in evaluations]
    for name in numbers(rows[0]):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(row["episode"], float(np.float32(numbers(row)[name]))) for row in rows]


def test_another_run_in_the_folder_starts_with_no_events(make: MakeTrainer, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make("tensorboard").train()
    make("none").train(overwrite=True)
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_library_of_runs_gets_settings_and_metrics(
    make: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    calls: list[tuple[Any, ...]] = []
    run = SimpleNamespace(
        log=lambda metrics, step: calls.append(("log", step, metrics)),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )

    def init(**settings: Any) -> Any:
        calls.append(("init", settings))
        return run

    fake = SimpleNamespace(init=init, finish=lambda: calls.append(("finish", 0)), Error=OSError)
    monkeypatch.setitem(sys.modules, library, fake)
    trainer = make(library)
    trainer.train()
    (_, begun), *logged, finished = calls
    assert (begun["project"], begun["name"], begun["config"]) == ("abmll", "run", trainer.settings())
    assert begun.get("dir") == (str(tmp_path / "run") if library == "wandb" else None)
    trained = [("log", row["episode"], numbers(row)) for row in trainer.folder.rows()]
    evaluated = [
        ("log", row["episode"], {f"eval/{name}": row[name] for name in ("nll", "accuracy")})
        for row in trainer.folder.rows("validation.jsonl")
    ]
    assert logged == [*trained[:2], evaluated[0], trained[2], evaluated[1]]
    assert finished == ("finish", 0)


def test_wandb_writes_its_files_into_the_run_folder(
    make: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    make("wandb").train()
    [written] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"accuracy" in written.read_bytes()


def test_trackio_keeps_the_metrics_in_its_folder(tmp_path: Path) -> None:
    """In a process of its own, as the library reads its folder's name when it is imported."""
    pytest.importorskip("trackio")
    program = f"""
from pathlib import Path
from abmll.training.trackers import trackers
[tracker] = trackers("trackio", Path({str(tmp_path / "run")!r}))
tracker.on_start({{"lr": 0.1}})
for episode in (1, 2):
    tracker.on_step(episode, {{"episode": episode, "nll": 1 / episode}})
tracker.on_end(None)
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with closing(sqlite3.connect(tmp_path / "abmll.db")) as store:
        rows = store.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(metrics)) for name, step, metrics in rows] == [
        ("run", 1, {"train/nll": 1.0}),
        ("run", 2, {"train/nll": 0.5}),
    ]


@pytest.mark.parametrize("library", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_named_before_training(
    make: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if library == "tensorboard" else library, None)
    with pytest.raises(ConfigError, match=rf"^report_to: {library} is not installed .*'abmll\[trackers\]'$"):
        make(library)
    assert not (tmp_path / "run").exists()


def test_who_is_not_logged_in_is_told_so(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: Any) -> None:
        raise OSError("No API key configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=OSError))
    with pytest.raises(ConfigError, match=r"^report_to: wandb: No API key configured; run 'wandb login', or set WANDB"):
        make("wandb").train()
