"""The report's tables: the right numbers in the right places."""

import numpy as np

from abmll.experiments.html import sections
from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import Outcomes

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
BASELINES = {"majority": 0.5, "chance": 0.25}
ONE = {"accuracy": 0.5, "nll": 1.0, "brier": 0.6, "ece": 0.1, "aurc": 0.4, "auroc": None, **BASELINES}
TWO = {**ONE, "accuracy": 0.6, "nll": 0.9, "ece": 0.1004}


def test_headline_marks_the_best_method_of_each_column_and_adds_baselines():
    table = sections.headline([Method("One", mean=ONE), Method("Two", 1, mean=TWO)])
    assert [row.label for row in table.rows] == ["One", "Two", "Best constant answer", "Chance"]
    assert [cell.best for cell in table.rows[0].cells] == [False, False, True, True, True, False]
    assert [cell.best for cell in table.rows[1].cells] == [True, True, True, True, True, False]
    assert [cell.text for cell in table.rows[2].cells] == ["0.500", "", "", "", "", ""]
    assert "0.600*" in table.text()
    assert "NLL ↓" in table.text()


def test_paired_differences_are_over_the_same_tasks():
    one = Method("One", 0, {"a": ONE, "b": {**ONE, "nll": 3.0}, "c": ONE})
    two = Method("Two", 1, {"a": TWO, "b": {**TWO, "nll": 2.7}})
    table = sections.paired_differences([one, two], one)
    by_heading = dict(zip(table.headers, (cell.text for cell in table.rows[0].cells), strict=True))
    assert [row.label for row in table.rows] == ["against Two"]
    assert by_heading["Accuracy ↑"] == f"{MINUS}0.100 ± 0.000"
    assert table.headers == ["Accuracy ↑", "NLL ↓", "Brier ↓", "AURC ↓"]
    # differences .1 and .3: mean .2, standard deviation .1414, standard error .1
    assert by_heading["NLL ↓"] == "+0.200 ± 0.100"


def test_a_metric_newer_than_some_numbers_is_shown_where_it_is_known():
    new = {**ONE, "squared_ce": 0.00123}
    one = Method("One", 0, {"a": new, "b": {**new, "squared_ce": 0.00143}}, new)
    two = Method("Two", 1, {"a": TWO, "b": TWO}, TWO)
    table = sections.headline([one, two])
    place = table.headers.index("CE² ↓")
    assert [row.cells[place].text for row in table.rows] == ["0.0012", DASH, "", ""]
    assert sections.paired_differences([one, two], one).rows[0].cells[3].text == DASH
    zero = Method("Zero", 2, {task: {**new, "squared_ce": 0.0} for task in "ab"}, new)
    assert sections.paired_differences([one, zero], one).rows[0].cells[3].text == "+0.0013 ± 0.0001"


def test_per_task_leaves_a_gap_where_a_method_lacks_the_task():
    first, second = ({**m, "num_examples": 1200} for m in (ONE, TWO))
    table = sections.per_task([Method("One", 0, {"a": first, "b": first}), Method("Two", 1, {"b": second})])
    assert table.headers == ["Examples", "Constant", *["One", "Two"] * 3]
    assert [cell.text for cell in table.rows[0].cells][:4] == ["1,200", "0.500", "0.500", DASH]
    assert [cell.best for cell in table.rows[1].cells] == [False, False, False, True, False, True, True, True]
    assert table.starts == {2, 4, 6}


def test_selective_error_at_four_coverages():
    each = Outcomes(*np.array([[0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], [0] * 4, [0] * 4, [0.5] * 4], dtype=float))
    table = sections.selective_error([Method("One", outcomes=each)])
    assert [cell.text for cell in table.rows[0].cells] == ["0.000", "0.500", "0.333", "0.500"]


def test_cost_shows_only_what_is_known():
    one, two = {"seconds": 20.0, "tokens": 4000}, {"seconds": 0.0, "tokens": 0}
    table = sections.cost([Method("One", cost=one), Method("Two", 1, cost=two)])
    assert table.headers == ["Seconds", "Tokens", "Tokens / s"]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["20", "4,000", "200"], ["0", "0", DASH]]
