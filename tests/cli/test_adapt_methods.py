"""``abmll adapt --method``: another method from a run of regular LoRA or of ABMLL, to answers and an export."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from abmll import MetaTrainer, TrainConfig
from abmll.cli.main import entry
from abmll.common.config import ContinueConfig
from abmll.methods import REGISTRY


def trained(model: Any, tasks: Any, folder: Path, method: str) -> Path:
    settings: dict[str, Any] = {
        "max_steps": 2,
        "inner_steps": 2,
        "per_device_train_batch_size": 2,
        "calibration_tasks": 2,
    }
    MetaTrainer(model, tasks, TrainConfig(output_dir=str(folder), method=method, **settings)).train()
    return folder


@pytest.fixture
def run(tiny_model: Any, toy_tasks: Any, tmp_path: Path) -> Path:
    return trained(tiny_model, toy_tasks, tmp_path / "run", "regular-lora")


@pytest.fixture
def task(toy_tasks: Any, tmp_path: Path) -> Path:
    rows = [{"input": one.input, "options": list(one.options), "answer": one.answer} for one in toy_tasks[0].train[:6]]
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_ensemble_from_adapting_to_exporting(
    run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    adapt = ["adapt", str(task), "--theta", str(run), "--output-dir", str(new), "--steps", "2"]
    assert entry([*adapt, "--method", "ensemble", "--ensemble-size", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["method"], summary["members"]) == ("ensemble", 2)

    answers = str(tmp_path / "answers.jsonl")
    assert entry(["predict", str(new), "--input", str(task), "--output", answers]) == 0
    shown = capsys.readouterr().out
    assert "2 members, each at its mean" in shown
    assert "how far the members disagree" in shown
    assert sum(json.loads(Path(answers).read_text().splitlines()[0])["probs"]) == pytest.approx(1)

    export = ["export", str(new), "--format", "peft", "--output-dir", str(tmp_path / "peft")]
    assert entry([*export, "--member", "2"]) == 2
    assert "member is 2; this posterior has 2, counted from 0" in capsys.readouterr().err
    assert entry([*export, "--member", "1"]) == 0
    assert "member 1 of 2" in capsys.readouterr().out


def test_activations_computed_anew(run: Path, task: Path, tmp_path: Path) -> None:
    adapt = ["adapt", str(task), "--theta", str(run), "--steps", "2", "--method", "blob", "--quiet"]
    learned = []
    for flags in ([], ["--gradient-checkpointing"]):
        folder = tmp_path / f"new{len(flags)}"
        assert entry([*adapt, *flags, "--output-dir", str(folder)]) == 0
        learned.append({path.name: path.read_bytes() for path in folder.glob("*.safetensors")})
    assert learned[0] == learned[1] != {}


def test_a_mixture_says_how_many_samples_each_component_draws(
    tiny_model: Any, toy_tasks: Any, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new = trained(tiny_model, toy_tasks, tmp_path / "run", "abmll"), tmp_path / "new"
    adapt = ["adapt", str(task), "--theta", str(run), "--output-dir", str(new), "--steps", "2"]
    assert entry([*adapt, "--method", "abmll-mixture", "--ensemble-size", "3"]) == 0
    capsys.readouterr()
    predict = ["predict", str(new), "--input", str(task), "--output", str(tmp_path / "answers.jsonl"), "--overwrite"]
    assert entry([*predict, "--num-samples", "4"]) == 0
    assert "3 members, 2 samples each" in capsys.readouterr().out
    assert entry([*predict, "--num-samples", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 0
    assert entry(["export", str(new), "--format", "peft", "--output-dir", str(tmp_path / "peft"), "--member", "2"]) == 0


@pytest.mark.parametrize("method", ["blob", "mc-dropout"])
def test_a_posterior_is_sampled(
    run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    new = tmp_path / "new"
    adapt = ["adapt", str(task), "--theta", str(run), "--output-dir", str(new), "--steps", "2"]
    assert entry([*adapt, "--method", method]) == 0
    assert (
        entry(["predict", str(new), "--input", str(task), "--output", str(tmp_path / "a.jsonl"), "--num-samples", "3"])
        == 0
    )
    assert "3 of the posterior" in capsys.readouterr().out
    assert json.loads((new / "posterior.json").read_text())["settings"]["method"] == method


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "reptile"], "'reptile' does not continue another method's run; those that do are blob, laplace"),
        (["--method", "blub"], "method: unknown 'blub'; Did you mean 'blob'?"),
        (
            ["--ensemble-size", "3"],
            "ensemble_size: regular-lora does not read it; leave it out, or use --method abmll-",
        ),
        (["--method", "blob", "--dropout-rate", ".3"], "dropout_rate: blob does not read it; leave it out, or use"),
        (
            ["--method", "mc-dropout", "--dropout-rate", "1"],
            "--dropout-rate is '1'; use a finite number of 0 or more and",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    adapt = ["adapt", str(task), "--theta", str(run), "--output-dir", str(tmp_path / "new"), "--quiet"]
    assert entry([*adapt, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_mixture_that_nobody_named_refuses_what_it_does_not_heed(
    tiny_model: Any, toy_tasks: Any, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tiny_model, toy_tasks, tmp_path / "run", "abmll")
    adapt = ["adapt", str(task), "--theta", str(run), "--output-dir", str(tmp_path / "new"), "--steps", "1", "--quiet"]
    assert entry([*adapt, "--ensemble-spread", ".5"]) == 2
    assert (
        "ensemble_spread: abmll-mixture does not read it; leave it out, or use --method ensem"
        in capsys.readouterr().err
    )
    assert entry([*adapt, "--method", "abmll", "--ensemble-size", "3"]) == 2
    assert "ensemble_size: abmll does not read it" in capsys.readouterr().err
    assert entry([*adapt, "--ensemble-size", "3"]) == 0


def test_every_setting_is_heeded_by_the_methods_that_name_it() -> None:
    reading = {name: rule.settings_read for name, rule in REGISTRY.items() if rule.settings_read}
    assert {name for names in reading.values() for name in names} == {field.name for field in fields(ContinueConfig)}
    assert reading.keys() == {name for name, rule in REGISTRY.items() if rule.base_method and not rule.classifier}
