"""Results that are kept: the numbers without the predictions, and tables that follow from them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from abmll.common.files import write_json
from benchmarks.publish import BLOCK, DOCUMENT, PLACE, RESULTS, filled, keep, restate

NAMES = ("accuracy", "nll", "brier", "ece", "aurc", "auroc")


def point(setting: float, value: float) -> dict[str, Any]:
    return {"value": setting, "mean": {"accuracy": value, "nll": value}, "pooled_ece": value}


def row(label: str, value: float) -> dict[str, Any]:
    return {
        "label": label,
        "seeds": [0],
        "mean": dict.fromkeys(NAMES, value) | {"num_tasks": 2, "num_examples": 10, "majority": 0.5, "chance": 0.25},
        "curves": {"num_samples": [point(0, value), point(4, value + 0.1)]} if label == "ABMLL" else {},
        "mean_errors": dict.fromkeys(NAMES),
        "tasks": {name: {"accuracy": value + shift, "nll": value} for name, shift in (("t", 0.0), ("u", 0.02))},
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
            "command": "abmll compare --suite toys --settings /a/results/settings/b.json --data-dir /far/data",
            "sha256": "of another document",
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
        "uniform_nll": 1.386,
        "failures": [],
        "methods": {"abmll": row("ABMLL", 0.6), "reptile": row("Reptile | x", 0.5)},
    }
    (made / "comparison.json").write_text(json.dumps(comparison))
    for name in ("table.csv", "tasks.csv"):
        (made / name).write_text(name)
    return made


def test_numbers_are_kept_and_predictions_are_not(folder: Path, tmp_path: Path) -> None:
    stale = tmp_path / "results" / "few-toys" / "cells" / "toys" / "abmll-s0-old.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    kept = keep(folder, tmp_path / "results")
    found = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    cells = ["cells/toys/abmll.json", "cells/toys/reptile.json"]
    assert found == [*cells, "comparison.json", "table.csv", "tasks.csv"]
    cell = json.loads((kept / cells[0]).read_text())
    assert cell["command"] == "abmll compare --suite toys --settings results/settings/b.json --data-dir data"
    assert "sha256" not in cell
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


def test_statistics_follow_from_the_tasks_and_those_of_predictions_stay(folder: Path, tmp_path: Path) -> None:
    kept = keep(folder, tmp_path / "results")
    comparison = json.loads((kept / "comparison.json").read_text())
    assert comparison["methods"]["reptile"]["statistics"]["differences"]["accuracy"]["value"] == pytest.approx(-0.1)
    reptile = comparison["methods"]["reptile"]
    reptile["tasks"] = {f"t{n}": {"accuracy": 0.5} for n in range(5)}
    reptile["statistics"] = {"intervals": {name: [0.1, 0.0, 0.2] for name in ("accuracy", "ece", "pooled_ece")}}
    write_json(kept / "comparison.json", comparison | {"methods": {"reptile": reptile}})
    restate(kept)
    [row] = json.loads((kept / "comparison.json").read_text())["methods"].values()
    assert row["statistics"] == {"intervals": {"accuracy": [0.5, 0.5, 0.5], "pooled_ece": [0.1, 0.0, 0.2]}}
    assert "reptile,pooled_ece,0.5,,0.0,0.2," in (kept / "table.csv").read_text()


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


def test_rows_that_a_later_comparison_lacks_stay(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    keep(folder, results)
    comparison = json.loads((folder / "comparison.json").read_text())
    ranked = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1}
    earlier = json.loads((results / "few-toys" / "comparison.json").read_text())
    for document in (comparison, earlier):
        for own in document["methods"].values():
            own["tasks"] = {"t": dict(ranked)}
    write_json(results / "few-toys" / "comparison.json", earlier)
    comparison["methods"] = {"head": comparison["methods"]["abmll"]}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    keep(folder, results)
    merged = json.loads((results / "few-toys" / "comparison.json").read_text())
    assert list(merged["methods"]) == [*earlier["methods"], "head"]
    assert merged["methods"]["head"]["task_ranks"]["accuracy"] == {"t": (len(merged["methods"]) + 1) / 2}


def test_the_document_holds_the_tables_and_its_own_words(folder: Path, tmp_path: Path) -> None:
    keep(folder, tmp_path / "results")
    text = "Before.\n<!-- table: few-toys headline -->\nold\n<!-- end -->\nBetween.\n"
    text += "<!-- table: few-toys curve num_samples -->\n<!-- end -->After."
    made = filled(text, tmp_path / "results")
    assert made.startswith("Before.\n<!-- table: few-toys headline -->\n| Method | Accuracy ↑ |")
    assert "| Reptile \\| x | 0.500 |" in made
    assert "old" not in made
    curve = (
        "| `num_samples` | 0 | 4 |\n| --- | ---: | ---: |\n| ABMLL | 0.600 / 0.600 / 0.600 | 0.700 / 0.700 / 0.700 |"
    )
    assert made.endswith(f"{curve}\n<!-- end -->After.")
    assert filled(made, tmp_path / "results") == made


def test_a_table_has_only_the_rows_that_are_named(folder: Path, tmp_path: Path) -> None:
    keep(folder, tmp_path / "results")
    made = filled("<!-- table: few-toys cost abmll -->\n<!-- end -->", tmp_path / "results")
    assert [line.split(" | ")[0] for line in made.splitlines()[1:-1]] == ["| Method", "| ---", "| ABMLL"]


def test_one_setting_is_read_from_the_cells_that_were_trained_anew_for_it(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    keep(folder, results)
    for name, beta, is_main in (("few-toys", 1e-6, True), ("few-toys", 1.0, False), ("toys", 3e-5, True)):
        cell = json.loads(next((RESULTS / "cls-45" / "cells").rglob("abmll-s0-*.json")).read_bytes())
        cell |= {"row": "abmll", "seed": 0, "is_main": is_main, "settings": {"beta": beta}}
        cell |= {"mean": {"accuracy": 0.5, "nll": 1.0}, "pooled": {"ece": 0.1}}
        write_json(results / name / "cells" / "toys" / f"abmll-s0-{beta}.json", cell)
    for stale in ("abmll", "reptile"):
        (results / "few-toys" / "cells" / "toys" / f"{stale}.json").unlink()
    made = filled("<!-- table: few-toys trained beta -->\n<!-- end -->", results)
    assert "| `beta` | 1e-06 | 3e-05 |\n" in made
    assert "| ABMLL, seed 0 | 0.500 / 1.000 / 0.100 | 0.500 / 1.000 / 0.100 |\n" in made


def test_the_committed_document_is_made_from_the_committed_results() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    kept = {path.parent.name for path in RESULTS.glob("*/comparison.json")}
    assert {suite for _, names, *_ in BLOCK.findall(text) for suite in names.split("+")} == kept != set()
    assert filled(text, RESULTS) == text


def test_no_command_that_is_kept_names_a_place_of_one_computer() -> None:
    commands = [json.loads(path.read_text(encoding="utf-8"))["command"] for path in RESULTS.glob("*/cells/*/*.json")]
    assert len(commands) > 500
    assert not [command for command in commands if PLACE.search(command)]
