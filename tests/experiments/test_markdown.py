"""A comparison's tables: the right numbers in the right places, with everything a reader has to know."""

import csv
from pathlib import Path
from typing import Any

import pytest

from abmll.experiments.markdown import against_reference, headline, notes, write_tables
from abmll.experiments.sheets import csv_text, method_rows
from abmll.experiments.tables import Table

METRICS = ("accuracy", "nll", "brier", "ece", "aurc", "auroc")


def row(label: str, value: float, error: float | None, differences: dict[str, Any] | None) -> dict[str, Any]:
    names = ("accuracy", "nll", "brier", "ece", "pooled_ece")
    statistics: dict[str, Any] = {"intervals": {name: [value, value - 0.1, value + 0.1] for name in names}}
    if differences is not None:
        statistics["differences"] = dict.fromkeys(names, differences)
    return {
        "label": label,
        "seeds": [0, 1],
        "mean": dict.fromkeys(METRICS, value) | {"num_tasks": 2, "num_examples": 1000, "majority": 0.5, "chance": 0.25},
        "mean_errors": dict.fromkeys(METRICS, error),
        "pooled": {"ece": value / 2},
        "pooled_errors": {"ece": error},
        "ranks": {"accuracy": 1.5, "nll": 2.0},
        "statistics": statistics,
        "machines": ["auto, torch 2", "cuda, torch 2"] if label == "ABMLL" else ["auto, torch 2"],
        "task_ranks": {"accuracy": {"some_task": 1.5}},
        "cost": {"seconds": 61.4, "gradient_steps": 600, "tokens": 12345},
        "tasks": {"some_task": {"accuracy": value, "nll": value}},
        "truncated_prompts": 1,
        "demonstrations_left_out": 7,
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    difference = {"value": -0.1, "low": -0.15, "high": 0.05, "p": 0.0123}
    return {
        "suite": "toys",
        "seeds": [0, 1],
        "reference": "abmll",
        "uniform_nll": 1.25,
        "missing": ["lost_task"],
        "known_leaks": ["sick"],
        "failures": [{"method": "maml", "seed": 1, "error": "too short"}],
        "methods": {"abmll": row("ABMLL", 0.6, 0.01, None), "lora": row("LoRA & co | x", 0.5, 0.02, difference)},
    }


def lines(table: Table | None) -> list[list[str]]:
    """The table's Markdown, as cells."""
    assert table is not None
    return [line.strip("| ").split(" | ") for line in table.markdown().splitlines()]


def test_the_headline(comparison: dict[str, Any]) -> None:
    headings, _, ours, other = lines(headline(comparison))
    assert headings[:3] == ["Method", "Accuracy ↑", "NLL ↓"]
    assert ours[:3] == ["ABMLL", "**0.600 ± 0.010**", "0.600 ± 0.010"]
    assert other[:3] == ["LoRA & co \\| x", "0.500 ± 0.020", "**0.500 ± 0.020**"]
    assert ours[5] == "0.300 ± 0.010 [0.500, 0.700]"  # pooled ECE
    assert other[5] == "**0.250 ± 0.020** [0.400, 0.600]"
    assert ours[-2:] == ["1.5 / 2.0", "2"]


def test_a_method_that_lacks_seeds_is_not_the_best(comparison: dict[str, Any]) -> None:
    comparison["methods"]["one"] = row("One seed", 0.9, None, None) | {"seeds": [0]}
    _, _, ours, _, one = lines(headline(comparison))
    assert (ours[1], one[1]) == ("**0.600 ± 0.010**", "0.900")


def test_one_seed_has_no_error(comparison: dict[str, Any]) -> None:
    comparison["methods"] = {"abmll": row("ABMLL", 0.6, None, None)}
    assert lines(headline(comparison))[2][1] == "0.600"
    assert against_reference(comparison) is None


def test_differences(comparison: dict[str, Any]) -> None:
    table = against_reference(comparison)
    assert table is not None
    assert table.title.startswith("Minus ABMLL")
    assert lines(table)[2:] == [["LoRA & co \\| x", *["\u22120.100 [\u22120.150, +0.050], 0.012"] * 5]]
    assert against_reference(comparison | {"reference": None}) is None


def test_what_has_no_interval_or_is_not_known(comparison: dict[str, Any]) -> None:
    found = comparison["methods"]["lora"]["statistics"]["differences"]
    found["nll"] = {"value": -0.1, "low": None, "high": None, "p": None}
    comparison["methods"]["old"] = row("Old", 0.4, None, found["brier"])
    comparison["methods"]["old"]["statistics"]["differences"].pop("pooled_ece")
    comparison["methods"]["lora"]["mean"]["squared_ce"] = 0.00123
    headings, _, one, other = lines(against_reference(comparison))
    assert (one[headings.index("NLL")], other[headings.index("Pooled ECE")]) == ("\u22120.100", "\N{EN DASH}")
    headings, _, *rows = lines(headline(comparison))
    assert [cells[headings.index("CE² ↓")] for cells in rows] == ["\N{EN DASH}", "0.0012", "\N{EN DASH}"]
    assert "lora,squared_ce,0.00123,,,," in csv_text(method_rows(comparison))


def test_columns_of_a_csv_are_those_of_all_rows() -> None:
    assert csv_text([{"a": 1}, {"a": 2, "b": 3}]) == "a,b\n1,\n2,3\n"


def test_notes_say_what_is_missing_leaky_cut_and_failed(comparison: dict[str, Any]) -> None:
    text = "\n".join(notes(comparison))
    for said in (
        "2 unseen tasks, 1,000 questions",
        "lost_task",
        "sick",
        "too long and were cut in the middle, over all seeds: 1 (ABMLL, LoRA & co | x).",
        "left out: 7 (ABMLL, LoRA & co | x).",
        "ABMLL: seeds on different machines (auto, torch 2 and cuda, torch 2), so without",
        "NLL of the uniform prediction 1.250",
        "maml, seed 1, failed",
    ):
        assert said in text


def test_methods_that_were_cut_alike_are_counted_together(comparison: dict[str, Any]) -> None:
    ours, other = comparison["methods"].values()
    comparison["methods"] |= {str(number): ours for number in range(4)} | {"last": other | {"truncated_prompts": 1200}}
    text = "\n".join(notes(comparison))
    assert "over all seeds: 1 (each of 6 methods); 1,200 (LoRA & co | x)." in text


def test_files(comparison: dict[str, Any], tmp_path: Path) -> None:
    assert [path.name for path in write_tables(comparison, tmp_path)] == ["table.md", "table.csv", "tasks.csv"]
    assert "\n## Cost of a seed\n\n| Method | Gradient steps |" in (tmp_path / "table.md").read_text()
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    [nll] = [one for one in rows if (one["method"], one["metric"]) == ("lora", "nll")]
    assert [float(nll[name]) for name in ("mean", "standard_error", "difference", "p", "rank")] == [
        0.5,
        0.02,
        -0.1,
        0.0123,
        2.0,
    ]
    [pooled] = [one for one in rows if (one["method"], one["metric"]) == ("abmll", "pooled_ece")]
    assert (float(pooled["mean"]), float(pooled["low"]), pooled["difference"], pooled["rank"]) == (0.3, 0.5, "", "")
    tasks = list(csv.DictReader((tmp_path / "tasks.csv").read_text().splitlines()))
    assert [one["task"] for one in tasks] == ["some_task", "lost_task"] * 2
    assert [one["accuracy_rank"] for one in tasks] == ["1.5", ""] * 2
    assert {one["missing_tasks"] for one in rows} == {"lost_task"}
