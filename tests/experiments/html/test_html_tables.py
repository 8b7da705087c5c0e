"""Tables: what is best, what is compared, and how it looks in a terminal."""

import numpy as np
import pytest

from abmll.experiments.html import tables
from abmll.experiments.html.tables import best_of, number, render_table
from abmll.experiments.metrics import Outcomes

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
BASELINES = {"majority": 0.5, "chance": 0.25}
ONE = {"accuracy": 0.5, "nll": 1.0, "brier": 0.6, "ece": 0.1, "aurc": 0.4, "auroc": None, **BASELINES}
TWO = {**ONE, "accuracy": 0.6, "nll": 0.9, "ece": 0.1004}


def test_render_table_aligns_first_column_left_and_others_right():
    text = render_table(["Task", "NLL"], [["a", "1.5"], ["longer", "10.25"]])
    assert text.splitlines() == ["Task      NLL", "------  -----", "a         1.5", "longer  10.25"]


def test_render_table_counts_wide_and_combining_characters():
    lines = render_table(["T", "N"], [["漢字", "1"], ["e\u0301", "2"]]).splitlines()
    assert lines[2] == "漢字  1"
    assert lines[3] == "e\u0301     2"


def test_render_table_keeps_control_characters_from_the_terminal():
    assert "\x1b" not in render_table(["Task"], [["evil\x1b[2J\nname"]])


def test_render_table_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="zip"):
        render_table(["a", "b"], [["1"]])


def test_number_shows_unknown_as_a_dash_and_a_true_minus():
    assert [number(v) for v in (None, float("nan"), 0.12349, -1)] == [DASH, DASH, "0.123", f"{MINUS}1.000"]
    assert number(1234567, 0) == "1,234,567"
    assert number(0.5, sign=True) == "+0.500"


def test_best_of_compares_as_displayed_and_marks_ties():
    assert best_of([0.1001, 0.1004, 0.2], "lower") == [True, True, False]
    assert best_of([0.1001, None, 0.2], "higher") == [False, False, True]
    assert best_of([0.3], "higher") == [False]
    assert best_of([None, float("nan")], "higher") == [False, False]


def test_headline_marks_the_best_method_of_each_column_and_adds_baselines():
    table = tables.headline({"One": ONE, "Two": TWO})
    assert [row.label for row in table.rows] == ["One", "Two", "Best constant answer", "Chance"]
    assert [cell.best for cell in table.rows[0].cells] == [False, False, True, True, True, False]
    assert [cell.best for cell in table.rows[1].cells] == [True, True, True, True, True, False]
    assert [cell.text for cell in table.rows[2].cells] == ["0.500", "", "", "", "", ""]
    assert "0.600*" in table.text()
    assert "NLL ↓" in table.text()


def test_paired_differences_are_over_the_same_tasks():
    tasks = {
        "One": {"a": ONE, "b": {**ONE, "nll": 3.0}, "c": ONE},
        "Two": {"a": TWO, "b": {**TWO, "nll": 2.7}},
    }
    table = tables.paired_differences(tasks, "One")
    by_heading = dict(zip(table.headers, (cell.text for cell in table.rows[0].cells), strict=True))
    assert [row.label for row in table.rows] == ["against Two"]
    assert by_heading["Accuracy ↑"] == f"{MINUS}0.100 ± 0.000"
    # differences .1 and .3: mean .2, standard deviation .1414, standard error .1
    assert by_heading["NLL ↓"] == "+0.200 ± 0.100"


def test_per_task_leaves_a_gap_where_a_method_lacks_the_task():
    first, second = ({**m, "num_examples": 1200} for m in (ONE, TWO))
    table = tables.per_task({"One": {"a": first, "b": first}, "Two": {"b": second}})
    assert table.headers == ["Examples", "Constant", *["One", "Two"] * 3]
    assert [cell.text for cell in table.rows[0].cells][:4] == ["1,200", "0.500", "0.500", DASH]
    assert [cell.best for cell in table.rows[1].cells] == [False, False, False, True, False, True, True, True]
    assert table.starts == {2, 4, 6}


def test_selective_error_at_four_coverages():
    each = Outcomes(*np.array([[0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], [0] * 4, [0] * 4, [0.5] * 4], dtype=float))
    table = tables.selective_error({"One": (0, each)})
    assert [cell.text for cell in table.rows[0].cells] == ["0.000", "0.500", "0.333", "0.500"]


def test_cost_shows_only_what_is_known():
    table = tables.cost({"One": (0, {"seconds": 20.0, "tokens": 4000}), "Two": (1, {"seconds": 0.0, "tokens": 0})})
    assert table.headers == ["Seconds", "Tokens", "Tokens / s"]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["20", "4,000", "200"], ["0", "0", DASH]]
