"""Curves over a setting: one figure a measure, and a section of the comparison's page."""

import json
from xml.etree import ElementTree

import pytest

from abmll.experiments.html import write_report
from abmll.experiments.html.curves import MEASURES, sweeps

SVG = "{http://www.w3.org/2000/svg}"


def point(value: float, level: float, error: float | None = 0.01):
    mean = {"accuracy": 0.5 + level, "nll": 1 - level, "ece": level + 0.05}
    return {"value": value, "mean": mean, "mean_errors": dict.fromkeys(mean, error), "pooled_ece": level}


@pytest.fixture
def curves():
    return {
        "ABMLL": (0, [point(1, 0.1), point(5, 0.2), point(20, 0.3)]),
        "LoRA": (1, [point(5, 0.1, None), point(40, 0.2, None)]),
    }


def test_there_is_a_figure_a_measure_with_every_value_on_its_axis(curves):
    figures = sweeps("adapt_examples", curves)
    assert len(figures) == len(MEASURES) == 4
    for figure, heading in zip(figures, MEASURES.values(), strict=True):
        texts = [element.text for element in ElementTree.fromstring(figure).iter(f"{SVG}text")]
        assert {"1", "5", "20", "40", heading, "ABMLL", "LoRA", "Examples adapted to"} <= set(texts)
    assert sweeps("adapt_examples", curves) == figures


def test_the_page_has_a_section_for_each_setting_and_for_foreign_inputs(make, tmp_path):
    comparison = make.comparison(tmp_path)
    plain = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Over training" not in plain
    assert "never meant for" not in plain
    abmll, lora, pretrained = comparison["methods"].values()
    abmll["curves"] = {"episodes": [point(10, 0.1), point(20, 0.2)], "num_samples": [point(0, 0.1), point(16, 0.2)]}
    lora["curves"] = {"episodes": [point(10, 0.1), point(20, 0.3)]}
    pretrained["curves"] = {}
    abmll["out_of_distribution"] = {"mean": {"entropy": 0.71, "mutual_information": 0.66}, "errors": {}}
    lora["out_of_distribution"] = {"mean": {"entropy": 0.61, "mutual_information": None}, "errors": {}}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("sweep-episodes-") > page.count("sweep-num_samples-") > 0
    assert "<h2>Over training: episodes</h2>" in page
    assert "<h2>Posterior samples (0: at the mean)</h2>" in page
    assert "<h2>Examples adapted to</h2>" not in page
    assert all(text in page for text in ("0.710", "0.660", "0.610", "\N{EN DASH}"))
    assert "<title id" in page.split("never meant for")[1].split("<table")[0]  # a figure above the numbers
