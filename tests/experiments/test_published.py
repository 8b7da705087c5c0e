"""The paper's numbers: a file that fits suites, methods and metrics, and a table that keeps them apart."""

from typing import Any

import pytest

from abmll.common.documents import Document
from abmll.experiments.costs.shapes import HUB_NAMES
from abmll.experiments.method_spec import parse_specs
from abmll.experiments.metrics import METRICS
from abmll.experiments.published import beside_published, published
from abmll.tasks import shipped_suites

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
ROWS = ("abmll@paper-v1", "reptile@paper-v1", "abmll")


def compared(suite: str = "winogrande", model: str = LLAMA, **settings: Any) -> Document:
    mean = {"accuracy": 0.5125, "mean_abs_confidence_gap": 0.25, "ece": 0.125}
    rows = {key: {"label": key.upper(), "mean": mean} for key in ROWS}
    settings = {"model": model, "limit_train": None} | settings
    return {"suite": suite, "settings": settings, "methods": rows, "missing": []}


def test_the_file_fits_suites_methods_and_metrics() -> None:
    metrics = published()["metrics"]
    assert {metric["formula"] for metric in metrics.values()} <= set(METRICS)
    tables = published()["tables"]
    assert len({table["suite"] for table in tables}) == len(tables)
    for table in tables:
        assert table["suite"] in shipped_suites()
        assert table["model"] is None or table["model"] in HUB_NAMES
        parse_specs(list(table["rows"]))
        for row in table["rows"].values():
            assert row.keys() <= metrics.keys()
            for name, value in row.items():
                low, high = map(float, value if isinstance(value, list) else (value, value))
                assert 0 < low <= high < metrics[name]["scale"]


def test_metrics_stand_under_the_paper_s_names_beside_those_of_the_same_formula() -> None:
    table = beside_published(compared())
    assert table is not None
    assert table.headers == [
        "accuracy, %, here", "accuracy, %, published", '"ECE", here', '"ECE", published',
    ]  # fmt: skip
    assert {row.label: [cell.text for cell in row.cells] for row in table.rows} == {
        "ABMLL@PAPER-V1": ["51.2", "74.8", "0.250", "0.317"],
        "REPTILE@PAPER-V1": ["51.2", "73.5", "0.250", "0.370"],
    }
    assert table.title == "Published numbers (version 1, table 1)"
    assert not any(cell.best for row in table.rows for cell in row.cells)


def test_a_range_and_a_table_whose_model_is_not_stated() -> None:
    comparison = compared("cls-45")
    comparison["methods"]["abmll@paper-v3"] = comparison["methods"]["abmll"]
    table = beside_published(comparison)
    assert table is not None
    assert [cell.text for cell in table.rows[0].cells] == ["51.2", "75.2 to 77.4"]
    assert table.title == "Published numbers (version 3; base model not stated)"
    few = beside_published(comparison | {"missing": ["imdb", "anli"]})
    assert few is not None
    assert few.title == "Published numbers (version 3; base model not stated; 2 of its tasks missing here)"


@pytest.mark.parametrize(
    "comparison",
    [
        compared("winogrande-smoke"),
        compared("bigbench"),
        compared(model="Qwen/Qwen2-7B-Instruct"),
        compared(limit_train=30),
        compared("cls-45"),  # none of whose published rows is compared
    ],
)
def test_they_are_not_shown_beside_another_experiment(comparison: Document) -> None:
    assert beside_published(comparison) is None
