"""Figures: their numbers, their text, and that they are part of the page."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from abmll.experiments.html import plots
from abmll.experiments.html.figure import NUM_COLORS, color_of, shorten, spread, standalone
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import Outcomes

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def each():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 300)
    correct = (rng.random(300) < confidence).astype(float)
    return Outcomes(confidence, correct, -np.log(confidence), 1 - confidence, np.full(300, 0.25))


def texts(svg):
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_reliability_writes_the_count_of_every_filled_bin(each):
    svg = plots.reliability(Method("ABMLL", outcomes=each), 60)
    counts = np.histogram(each.confidence, bins=15, range=(0, 1))[0]
    assert [t for t in texts(svg) if t.isdigit() and int(t) > 1] == [str(c) for c in counts if c]
    assert "ABMLL" in texts(svg)


def test_figures_are_deterministic_and_their_ids_belong_to_them(each):
    one, again = (plots.reliability(Method("ABMLL", outcomes=each), 60) for _ in range(2))
    other = plots.reliability(Method("ABMLL", 1, outcomes=each), 60)
    assert one == again
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', one))
    assert referred
    assert referred <= ids[0]


def test_figures_have_the_pages_colours_only_and_a_title(each):
    svg = plots.risk_coverage_curves([Method("ABMLL", outcomes=each), Method("LoRA", 1, outcomes=each)])
    assert not re.search("#[0-9a-f]{6}", svg)
    assert {"var(--m0)", "var(--m1)", "var(--muted)"} <= set(re.findall(r"var\(--\w+\)", svg))
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    named = {e.attrib["id"]: e.text for e in root if e.tag in (f"{SVG}title", f"{SVG}desc")}
    assert list(named) == root.attrib["aria-labelledby"].split()
    assert all(named.values())


def test_a_figure_that_stands_alone_brings_its_colours_for_light_and_dark(each):
    svg = plots.reliability(Method("ABMLL", outcomes=each), 60)
    root = ElementTree.fromstring(standalone(svg))
    [style] = root.findall(f"{SVG}style")
    light, dark = (style.text or "").split("@media screen and (prefers-color-scheme: dark)")
    for variable in set(re.findall(r"var\((--\w+)\)", svg)):
        assert f"{variable}: #" in light
        assert f"{variable}: #" in dark
    assert texts(standalone(svg)) == texts(svg)


def test_untrusted_names_are_text_and_not_markup_or_mathematics():
    metrics = {"accuracy": 0.5, "majority": 0.4}
    names = ["<script>alert(1)</script>", "cost $x_1 & $", "漢字 \x1b[2J", 'id="#010203"']
    svg = plots.task_dots("accuracy", "Accuracy", [Method("A", 0, dict.fromkeys(names, metrics))], "majority")
    assert "<script" not in svg
    assert {"cost $x_1 & $", 'id="#010203"', "漢字 \N{REPLACEMENT CHARACTER}[2J"} <= set(texts(svg))


def test_curve_without_any_value_is_left_out():
    episodes, unknown = np.arange(1.0, 5), np.full(4, np.nan)
    lora = Method("LoRA", 1, curves={"episode": episodes, "log_sigma": unknown, "kl": np.zeros(4)})
    assert plots.training_curve("log_sigma", [lora], 2) is None
    assert plots.training_curve("kl", [lora], 2) is None  # what a method without a posterior writes
    svg = plots.training_curve("log_sigma", [Method("ABMLL", curves=dict.fromkeys(lora.curves, episodes)), lora], 2)
    assert svg is not None
    assert "ABMLL" in texts(svg)
    assert "LoRA" not in texts(svg)


def test_a_sweep_has_every_value_on_its_axis(point):
    methods = [
        Method("ABMLL", sweeps={"adapt_examples": [point(1, 0.1), point(5, 0.2), point(20, 0.3)]}),
        Method("LoRA", 1, sweeps={"adapt_examples": [point(5, 0.1, None), point(40, 0.2, None)]}),
        Method("Reptile", 2),
    ]
    for key, heading in plots.MEASURES.items():
        figure = plots.sweep("adapt_examples", key, methods)
        assert {"1", "5", "20", "40", heading, "ABMLL", "LoRA", "Examples adapted to"} <= set(texts(figure))
        assert "Reptile" not in texts(figure)
        assert plots.sweep("adapt_examples", key, methods) == figure


def test_smooth_is_a_centred_mean_that_shrinks_at_the_ends_and_skips_gaps():
    assert plots.smooth(np.array([1.0, 2, 6, 4]), 3).tolist() == [1.5, 3, 4, 5]
    assert plots.smooth(np.array([1.0, np.nan, 3]), 3).tolist() == [1, 2, 3]
    assert plots.smooth(np.array([2.0, 4]), 1).tolist() == [2, 4]
    assert np.isnan(plots.smooth(np.array([np.nan]), 5)).all()
    assert len(plots.smooth(np.arange(3.0), 10)) == 3


def test_wilson_interval_solves_its_equation():
    rate, count, z = np.array([0.0, 0.3, 1.0]), np.array([5, 40, 1]), 1.96
    for bound in plots.wilson_interval(rate, count):
        # the bounds are the p whose own standard error puts the observed rate z away
        assert (rate - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / count, abs=1e-12)


def test_spread_keeps_order_gap_and_limits():
    assert spread([0.5, 0.1, 0.52], 0.1, 0, 1) == pytest.approx([0.5, 0.1, 0.6])
    assert spread([1.0, 1.0, 1.0], 0.2, 0, 1) == pytest.approx([0.6, 0.8, 1.0])
    assert spread([0.5] * 4, 1.0, 0, 1) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert spread([], 0.1, 0, 1) == []


def test_shorten_keeps_both_ends():
    assert shorten("unit_interpretation.lv0", 11) == "unit_….lv0" or len(shorten("unit_interpretation.lv0", 11)) == 11
    assert shorten("short", 11) == "short"


def test_ninth_method_shares_a_colour_and_not_its_line(each):
    svg = plots.risk_coverage_curves([Method(f"method {i}", i, outcomes=each) for i in range(9)])
    lines = re.findall(r'clip-path="[^"]*" style="([^"]*var\(--m0\)[^"]*)"', svg)
    assert len(lines) == len(set(lines)) == 2


def test_methods_have_their_own_colours_until_these_run_out():
    assert len({color_of(i) for i in range(NUM_COLORS)}) == NUM_COLORS
    assert color_of(NUM_COLORS) == color_of(0)


def test_validation_curves_name_both_lines_and_ring_the_chosen_one():
    curves = {name: np.array([1.0, 2.0, 3.0, 4.0]) for name in ("episode", "nll", "accuracy")}
    evaluations = {"episode": np.array([2.0, 4.0]), "nll": np.array([0.4, 0.5]), "accuracy": np.array([0.6, 0.5])}
    method = Method("ABMLL", curves=curves, evaluations=evaluations)
    for key, heading in plots.VALIDATED.items():
        svg = plots.validation_curve(key, method, 1)
        assert {"validation", "training", heading, "Episode"} <= set(texts(svg))
        chosen = plots.validation_curve(key, replace(method, best_episode=2), 1)
        assert "stroke: var(--ink)" not in svg
        assert "stroke: var(--ink)" in chosen
