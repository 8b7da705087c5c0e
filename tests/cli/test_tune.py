"""``abmll tune``: the same number of trials for every method, on validation tasks, resumable, read by compare."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.cli.tune import _in_words
from abmll.common.errors import AbmllError
from abmll.experiments import search as tune
from abmll.experiments.cell_runner import CellRunner
from abmll.experiments.method_spec import KINDS, Spec, defaults
from abmll.experiments.ranges import SPACES, in_range, search_space
from abmll.experiments.search import Trial
from abmll.methods import REGISTRY

Call = Callable[..., Any]
BUDGET = (
    "--dtype fp32 --r 2 --layers-to-transform 1 --max-steps 1 --save-steps 1 --inner-steps 2 --steps 2 "
    "--per-device-train-batch-size 4 --adapt-examples 6 --test-examples 5 --num-samples 2"
)


@pytest.fixture
def command(work: Any) -> str:
    pytest.importorskip("optuna")
    Path("tasks/toy3.jsonl").write_bytes(Path("toy3.jsonl").read_bytes())
    Path("mine.yaml").write_text("name: mine\ntrain: [toy0, toy1, toy2]\nvalidation: [toy2]\nevaluation: [toy3]\n")
    return f"--suite mine.yaml --model {work.model} {BUDGET}"


def test_trials_are_equal_in_number_judged_on_validation_tasks_and_read_by_compare(command: str, abmll: Call) -> None:
    tuning = f"tune {command} --methods abmll,ensemble --trials 3 --output-dir tuned"
    code, out, err = abmll(tuning)
    assert (code, err) == (0, "")
    found = json.loads(Path("tuned/settings.json").read_text())
    assert list(found["methods"]) == ["regular-lora", "abmll", "ensemble"]  # the ensemble continues regular LoRA
    assert found["methods"]["abmll"].keys() == search_space(Spec("abmll")).keys()
    assert "best of 3 trials" in out
    files = {
        path.name.rsplit("-", 1)[0]: json.loads(path.read_text())["trials"] for path in Path("tuned/trials").iterdir()
    }
    assert {name: len(trials) for name, trials in files.items()} == {"regular-lora": 3, "abmll": 3, "ensemble": 3}
    for name, trials in files.items():
        best = min(trials, key=lambda trial: trial["nll"])
        assert best["settings"] == found["methods"][name]
        assert best["nll"] == found["scores"][name]["nll"]
        first = trials[0]["settings"]
        assert first == in_range(defaults(), search_space(Spec(name)))
    cells = [json.loads(path.read_text()) for path in Path("tuned/cells").rglob("*.json")]
    assert len(cells) == 9
    assert {cell["suite"] for cell in cells} == {"mine-validation"}
    assert all(list(cell["tasks"]) == ["toy2"] for cell in cells)
    assert abmll(f"compare {command} --methods abmll --seeds 0 --settings tuned/settings.json").code == 0
    [evaluated] = [json.loads(path.read_text()) for path in Path("runs/compare/cells").rglob("*.json")]
    assert {name: evaluated["settings"][name] for name in found["methods"]["abmll"]} == found["methods"]["abmll"]


def test_a_stopped_tuning_goes_on(command: str, abmll: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = f"tune {command} --methods reptile --trials 4"
    compute, computed = CellRunner.compute, []

    def stopped(self: CellRunner, cell: Any) -> None:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(cell.hash)
        compute(self, cell)

    with monkeypatch.context() as patch:
        patch.setattr(CellRunner, "compute", stopped)
        code, _, err = abmll(tuning, "--output-dir tuned")
    assert code == 130
    assert err.endswith("tuned: run the same command to go on; what is finished is kept\n")
    assert abmll(tuning, "--output-dir tuned").code == 0
    assert abmll(tuning, "--output-dir whole").code == 0
    part, whole = (json.loads(Path(folder, "settings.json").read_text()) for folder in ("tuned", "whole"))
    assert part["methods"] == whole["methods"]
    assert len(list(Path("tuned/cells").rglob("*.json"))) == 4


def test_what_a_settings_file_brought_along_is_said_as_it_is() -> None:
    assert _in_words({"learning_rate": 0.00123456, "predictive": "linearized"}) == (
        "learning_rate 0.00123, predictive linearized"
    )


def test_settings_under_which_a_method_fails_are_not_chosen() -> None:
    trials = [Trial({"beta": 1.0}, None, error="nan"), Trial({"beta": 2.0}, 0.5), Trial({"beta": 3.0}, 0.4)]
    assert tune.best_of(Spec("abmll"), trials).settings == {"beta": 3.0}
    with pytest.raises(AbmllError, match="abmll failed in every trial: nan"):
        tune.best_of(Spec("abmll"), trials[:1])


def test_every_setting_that_is_varied_exists_and_its_default_is_within_reach() -> None:
    known, now = {name for kind in KINDS for name in kind.__dataclass_fields__}, defaults()
    for method in {*SPACES, *REGISTRY}:
        for name, own in (SPACES.get(method) or {}).items():
            assert name in known
            assert now[name] is None or own.low <= now[name] <= own.high, (method, name)
            assert own.low <= in_range(now, {name: own})[name] <= own.high


def test_refusals(command: str, refused: Callable[..., str]) -> None:
    refused(f"tune {command} --trials 0", "trials is 0; use 1 or more")
    refused(f"tune {command} --num-samples 2,4", "num_samples: a trial has one value of it")
    Path("mine.yaml").write_text("name: mine\ntrain: [toy0, toy1]\nevaluation: [toy3]\n")
    refused(f"tune {command}", "suite 'mine' has no validation tasks")
