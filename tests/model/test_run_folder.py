"""The files of a run: claimed, continued, never mixed with something else's."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.common.config import LATER, TrainConfig
from abmll.common.errors import AbmllError, CheckpointError, ConfigError
from abmll.common.settings import flatten
from abmll.model.run_folder import METRICS, TIMING, RunFolder, refuse_other_run

SETTINGS = flatten(TrainConfig(lr_scheduler_type="constant"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with three episodes, two checkpoints, a report and an evaluation."""
    run = RunFolder(tmp_path / "run")
    run.start(SETTINGS, overwrite=False)
    for episode in (1, 2, 3):
        run.append(METRICS, {"episode": episode})
        run.append(TIMING, {"episode": episode})
    for name in (
        "checkpoint-1/state.json",
        "checkpoint-2/state.json",
        "evaluation/metrics.json",
        "report.html",
        "validation.jsonl",
        "best.json",
        "my.txt",
    ):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("old")
    return run


def names(folder: RunFolder) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}


def test_a_new_run_writes_its_settings(folder: RunFolder) -> None:
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == SETTINGS


def test_an_existing_run_is_refused_as_it_is(folder: RunFolder) -> None:
    before = names(folder)
    with pytest.raises(ConfigError, match="run: holds a run already; continue it with --resume or replace it with --"):
        folder.start(SETTINGS, overwrite=False)
    assert names(folder) == before


def test_overwriting_leaves_nothing_that_could_be_taken_for_the_new_run(folder: RunFolder) -> None:
    folder.start(SETTINGS, overwrite=True)
    assert names(folder) == {"config.yaml", "my.txt"}
    assert folder.rows() == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["checkpoint-500/pytorch_model.bin", "metrics.jsonl", "report.html", "README.md"])
def test_what_something_else_left_is_never_deleted(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=r"but no config\.yaml of a run; choose another folder"):
        RunFolder(tmp_path).start(SETTINGS, overwrite)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ["lr: 1\n", "- a\n", "a: [\n", ""])
def test_settings_of_something_else_are_no_run(tmp_path: Path, text: str, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds a config\.yaml that is no run's; choose another folder"):
        RunFolder(tmp_path).start(SETTINGS, overwrite)
    assert (tmp_path / "config.yaml").read_text() == text


def test_a_run_that_was_stopped_at_once_is_one(tmp_path: Path) -> None:
    RunFolder(tmp_path).start(SETTINGS, overwrite=False)
    assert RunFolder(tmp_path).is_run()
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder(tmp_path).start(SETTINGS, overwrite=False)


def test_other_files_may_lie_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).start(SETTINGS, overwrite=False)
    RunFolder(tmp_path).start(SETTINGS, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(AbmllError, match=r"cannot write .*run"):
        RunFolder(tmp_path / "run").start(SETTINGS, overwrite=False)


def test_resuming_drops_later_lines_and_leftovers(folder: RunFolder) -> None:
    with (folder.path / METRICS).open("a") as file:
        file.write('{"episode": 4, "nl')  # the process was killed while it wrote
    leftover = folder.path / ".checkpoint-3.17-abc.tmp"
    leftover.mkdir()
    half = folder.path / ".config.yaml.17-abc.tmp"
    half.write_text("max_")
    other = folder.path / ".mine.tmp"
    other.write_text("mine")
    folder.resume(SETTINGS | {"max_steps": 7}, episode=2)
    assert (folder.path / METRICS).read_text() == '{"episode": 1}\n{"episode": 2}\n'
    assert (folder.path / TIMING).read_text() == '{"episode": 1}\n{"episode": 2}\n'
    assert not leftover.exists()
    assert not half.exists()
    assert other.exists()
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["max_steps"] == 7


def test_a_damaged_line_is_named(folder: RunFolder) -> None:
    (folder.path / METRICS).write_text('{"episode": 1}\n{"episode\n{"episode": 3}\n')
    before = (folder.path / TIMING).read_bytes()
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl:2: is not valid JSON .*; the file is damaged: delete that line"
    ):
        folder.resume(SETTINGS, episode=2)
    assert (folder.path / TIMING).read_bytes() == before


def test_rows_are_json_without_nan(folder: RunFolder) -> None:
    folder.append("more.jsonl", {"nll": 0.1})
    assert folder.rows("more.jsonl") == [{"nll": 0.1}]
    with pytest.raises(ValueError, match="JSON"):
        folder.append("more.jsonl", {"nll": float("nan")})
    assert folder.rows("more.jsonl") == [{"nll": 0.1}]
    assert folder.rows("nothing.jsonl") == []


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 2e-6},
        {"seed": 1},
        {"inner_steps": 4},
        {"method": "structured-lora"},
        {"activation_cache_gb": 0.0},
        {"lr_scheduler_type": "linear"},
        {"gamma": None},
    ],
)
def test_a_run_goes_on_as_it_began(change: dict[str, Any]) -> None:
    [(key, value)] = change.items()
    words = rf"^runs/x: --resume with {key} = {value}, but the run has {key} = {SETTINGS[key]}; use the run's settings"
    with pytest.raises(ConfigError, match=words):
        refuse_other_run(SETTINGS, SETTINGS | change, Path("runs/x"))


@pytest.mark.parametrize(
    "change",
    [
        {"max_steps": 200},
        {"save_steps": 7, "save_total_limit": 9},
        {"output_dir": "elsewhere"},
        {"report_to": "wandb"},
        {"eval_steps": 5, "early_stopping_patience": 2, "load_best_model_at_end": True},
        {"gradient_checkpointing": True},
        {"activation_cache_gb": 1.0},
        {"activation_cache_dir": "/somewhere", "activation_cache_disk_gb": 3.0},
        {"activation_cache_dir": "/somewhere", "activation_cache_gb": 0.0},
    ],
)
def test_how_long_and_where_may_change(change: dict[str, Any]) -> None:
    refuse_other_run(SETTINGS, SETTINGS | change, Path("runs/x"))


@pytest.mark.parametrize("where", [None, "/somewhere"])
def test_activations_kept_on_disk_alone_are_kept(where: str | None) -> None:
    old = SETTINGS | {"activation_cache_gb": 0.0, "activation_cache_dir": where}
    refuse_other_run(old, old, Path("runs/x"))
    other = None if where else "/somewhere"
    with pytest.raises(ConfigError, match=f"--resume with activation_cache_dir = {other}, but the run has"):
        refuse_other_run(old, old | {"activation_cache_dir": other}, Path("runs/x"))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_length_of_a_schedule_may_not(kind: str) -> None:
    old = SETTINGS | {"lr_scheduler_type": kind}
    with pytest.raises(
        ConfigError, match=f"but the run has max_steps = 100, the length of its {kind} schedule; use the run's settings"
    ):
        refuse_other_run(old, old | {"max_steps": 200}, Path("runs/x"))


def test_a_run_from_before_a_setting_goes_on_as_if_it_had_had_its_default() -> None:
    old = {key: value for key, value in SETTINGS.items() if key not in LATER}
    assert old != SETTINGS
    refuse_other_run(old, SETTINGS, Path("runs/x"))
    with pytest.raises(ConfigError, match=r"with gradient_accumulation_steps = 2, but the run has .* = 1; use"):
        refuse_other_run(old, SETTINGS | {"gradient_accumulation_steps": 2}, Path("runs/x"))


def test_settings_read_back_from_json_are_the_same() -> None:
    refuse_other_run(json.loads(json.dumps(SETTINGS)), SETTINGS, Path("runs/x"))
