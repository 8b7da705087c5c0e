"""Results that are kept: the numbers without the predictions, and tables that follow from them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.publish import BLOCK, DOCUMENT, RESULTS, filled, keep

NAMES = ("accuracy", "nll", "brier", "ece", "aurc", "auroc")


def row(label: str, value: float) -> dict[str, Any]:
    return {
        "label": label,
        "seeds": [0],
        "mean": dict.fromkeys(NAMES, value) | {"num_tasks": 2, "num_examples": 10, "majority": 0.5, "chance": 0.25},
        "mean_errors": dict.fromkeys(NAMES),
        "pooled": {"ece": value},
        "pooled_errors": {"ece": None},
        "ranks": {},
        "statistics": {},
        "machines": ["auto, torch 2"],
        "cost": {"seconds": 3.0},
        "truncated_prompts": 0,
        "demonstrations_left_out": 0,
        "predictions": [f"cells/toys/{label.split(' ')[0].lower()}.predictions.jsonl"],
        "run": "runs/abmll",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a comparison of two methods leaves, in short."""
    made = tmp_path / "few-toys"
    cells = made / "cells" / "toys"
    cells.mkdir(parents=True)
    for name in ("abmll", "reptile"):
        cell = {
            "command": "abmll compare --suite toys",
            "commit": "abc+",
            "tasks": {"t": {"accuracy": 0.75, "nll": 0.6}},
        }
        cell["calibration"] = {"inverse_temperatures": {"t": 0.4}} if name == "abmll" else None
        (cells / f"{name}.json").write_text(json.dumps(cell))
        rows = [{"task": "t", "answer": answer, "mutual_information": 0.1 * answer} for answer in (0, 1, 1, 0)]
        (cells / f"{name}.predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    comparison = {
        "suite": "toys",
        "seeds": [0],
        "reference": "abmll",
        "missing": [],
        "known_leaks": [],
        "uniform_nll": None,
        "failures": [],
        "methods": {"abmll": row("ABMLL", 0.6), "reptile": row("Reptile | x", 0.5)},
    }
    (made / "comparison.json").write_text(json.dumps(comparison))
    for name in ("table.csv", "tasks.csv"):
        (made / name).write_text(name)
    return made


def test_numbers_are_kept_and_predictions_are_not(folder: Path, tmp_path: Path) -> None:
    stale = tmp_path / "results" / "few-toys" / "cells" / "toys" / "old.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    kept = keep(folder, tmp_path / "results")
    found = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    cells = ["cells/toys/abmll.json", "cells/toys/reptile.json"]
    assert found == [*cells, "comparison.json", "table.csv", "tasks.csv"]
    methods = json.loads((kept / "comparison.json").read_text())["methods"]
    assert [(own["predictions"], own["run"]) for own in methods.values()] == [([], None)] * 2
    for own, inverse in zip(methods.values(), (0.4, None), strict=True):
        [seed] = own["doubt"]
        wanted = {
            "error": 0.25,
            "excess": 0.6 - math.log(2),
            "mutual_information": 0.05,
            "inverse_temperature": inverse,
        }
        assert seed["t"] == {name: value and pytest.approx(value) for name, value in wanted.items()}


def test_the_doubt_of_predictions_that_are_gone_stays(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"

    def publish(accuracy: float) -> dict[str, Any]:
        comparison = json.loads((folder / "comparison.json").read_text())
        for own in comparison["methods"].values():
            own["tasks"] = {"t": {"accuracy": accuracy}}
        (folder / "comparison.json").write_text(json.dumps(comparison))
        keep(folder, results)
        methods = json.loads((results / "few-toys" / "comparison.json").read_text())["methods"]
        return {name: own["doubt"] for name, own in methods.items()}

    known = publish(0.75)
    assert known["abmll"][0]["t"]["inverse_temperature"] == 0.4
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["methods"]["abmll"]["predictions"] = []
    (folder / "comparison.json").write_text(json.dumps(comparison))
    assert publish(0.75) == known
    assert publish(0.5) == known | {"abmll": []}


def test_the_document_holds_the_tables_and_its_own_words(folder: Path, tmp_path: Path) -> None:
    keep(folder, tmp_path / "results")
    text = "Before.\n<!-- table: few-toys headline -->\nold\n<!-- end -->\n"
    text += "<!-- table: few-toys commands -->\n<!-- end -->After."
    made = filled(text, tmp_path / "results")
    assert made.startswith("Before.\n<!-- table: few-toys headline -->\n| Method | Accuracy ↑ |")
    assert "| Reptile \\| x | 0.500 |" in made
    assert "old" not in made
    block = "```bash\n# cells: 2, at commit abc+\nabmll compare --suite toys\n```\n\n</details>\n<!-- end -->After."
    assert block in made
    assert filled(made, tmp_path / "results") == made


def test_the_committed_document_is_made_from_the_committed_results() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    kept = {path.parent.name for path in RESULTS.glob("*/comparison.json")}
    assert {suite for _, suite, _, _ in BLOCK.findall(text)} == kept != set()
    assert filled(text, RESULTS) == text
