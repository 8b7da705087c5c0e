"""The one table: what is best, and how it looks as Markdown and in a terminal."""

import pytest

from abmll.experiments.tables import Cell, Row, Table, best_of, number, render_table

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


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
    for alone in ([0.3], [0.3, None], [None, float("nan")]):
        assert best_of(alone, "higher") == [False] * len(alone)


def test_the_same_table_as_markdown_and_for_a_terminal():
    rows = [Row("a | b", [Cell("1.0", True, " [0, 2]"), Cell("3")]), Row("c", [Cell("0.5"), Cell("")])]
    table = Table("Title", "Method", ["Up ↑", "Down ↓"], rows)
    assert table.markdown().splitlines() == [
        "| Method | Up ↑ | Down ↓ |",
        "| --- | ---: | ---: |",
        "| a \\| b | **1.0** [0, 2] | 3 |",
        "| c | 0.5 |  |",
    ]
    assert table.text().splitlines()[2].split() == ["a", "|", "b", "1.0*", "[0,", "2]", "3"]


def test_groups_of_columns():
    rows = [Row("x", [Cell("1"), Cell("2"), Cell("3"), Cell("4"), Cell("5")])]
    headers, groups = ["Size", "One", "Two", "One", "Two"], ["", "NLL", "NLL", "ECE", "ECE"]
    table = Table("Title", "Task", headers, rows, groups=groups, methods=[None, 0, 1, 0, 1])
    assert table.spans == [("", 1), ("NLL", 2), ("ECE", 2)]
    assert table.starts == {1, 3}
    assert "Size  NLL One  NLL Two  ECE One  ECE Two" in table.text()
    alone = Table("Title", "Task", headers[:2], [Row("x", rows[0].cells[:2])], groups=groups[:2], methods=[None, 0])
    assert alone.text().splitlines()[0].split() == ["Task", "Size", "NLL"]
