"""What a table's labelled rows teach, what is refused, and what is warned of."""

from typing import Any

import pytest

from abmll.common.errors import DataError
from abmll.tasks.columns import Columns, Table
from abmll.tasks.labelled import LabelledRows, capped, in_order, labelled_rows
from abmll.tasks.rows import Row

COLUMNS = Columns("text", "label")


def rows_of(pairs: list[tuple[Any, Any]], **settings: Any) -> LabelledRows:
    rows = tuple(Row(f"t.csv:{n}", {"text": text, "label": label}) for n, (text, label) in enumerate(pairs, 2))
    return labelled_rows(Table("t.csv", ("text", "label"), rows), COLUMNS, **settings)


def plain(labels: list[Any]) -> list[tuple[Any, Any]]:
    return [(f"this is text {n}", label) for n, label in enumerate(labels)]


def test_rows_without_label_or_text_are_counted() -> None:
    found = rows_of([*plain(["b", "a", "b", "a", "b", "a", ""]), (" ", "a"), (None, "")])
    assert found.labels == ("a", "b")
    assert found.unlabelled == (6,)
    assert found.without_text == 2
    assert found.warnings == ()
    first = found.examples()[0]
    assert (first.input, first.options, first.answer) == ("this is text 0", ("a", "b"), 1)


def test_labels_may_be_numbers_and_truth_values() -> None:
    assert rows_of(plain([1, 0, 1, 0])).labels == ("0", "1")
    assert rows_of(plain([True, False, True])[:3] + plain([False])).labels == ("False", "True")


def test_rows_that_are_for_testing_are_held_out() -> None:
    splits = ["train"] * 4 + ["test", "validation", None]
    pairs = plain(["a", "b"] * 3 + ["a"])
    values = [{"text": text, "label": label, "split": own} for (text, label), own in zip(pairs, splits, strict=True)]
    rows = tuple(Row(f"t.csv:{n}", row) for n, row in enumerate(values, 2))
    found = labelled_rows(Table("t.csv", ("text", "label", "split"), rows), COLUMNS)
    assert (found.rows, found.held_out) == ((0, 1, 2, 3, 6), 2)


@pytest.mark.parametrize(
    ("pairs", "settings", "fragment"),
    [
        (plain(["", "", ""]), {}, "no row has both a text in 'text' and a label in 'label'; label some rows"),
        (plain(["a", "b"]), {}, "2 rows are labelled; label at least 4"),
        ([("Same", "a"), ("same.", "b")] * 3, {}, "all labelled rows have the same text in 'text'"),
        (plain(["a"] * 9), {}, "'label' has one label alone, 'a'; rows of at least two are needed"),
        (plain(["a", "b", "c", "d", "e"]), {}, "'label' has another label in every row; is it the right column?"),
        (plain([f"{n // 2}x" for n in range(402)]), {}, "'label' has 201 labels; at most 200 are possible"),
        (plain([f"{n / 7:.3f}" for n in range(30)] + ["1.5"]), {}, "a quantity, not labels; replace them by a few"),
        (plain(["a", "b\nc", "a", "b\nc"]), {}, "t.csv:3: the label 'b\\nc' has a line break; write it on one line"),
        (plain(["a", "bb", "a", "bb"]), {"labels": ("a", "b")}, "t.csv:3: the label 'bb' is not among --labels"),
        (plain(["a|b", "[1", "a", "b"]), {"is_multi_label": True}, "'[1' is not a JSON list of labels"),
        (plain(["a", "a", "a", "a"]), {"is_multi_label": True}, "has one label alone"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    pairs: list[tuple[Any, Any]], settings: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(pairs, **settings)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "settings", "warning"),
    [
        (plain(["a", "a", "a", "b", "b"]), {}, "labels with 2 examples or fewer: 'b' (2); label more rows of them"),
        (plain(["a", "b"] * 3), {"labels": ("a", "b", "c")}, "labels with 2 examples or fewer: 'c' (0)"),
        (plain(["Bug", "bug"] * 3), {}, "spaces, marks or invisible characters alone: 'Bug' and 'bug'"),
        (plain(["bug", "bu\u200bg"] * 3), {}, "invisible characters alone: 'bug' and 'bu\\u200bg'; if they mean"),
        (plain(["é", "e\u0301"] * 3), {}, "invisible characters alone: 'e\\u0301' and '\\xe9'; if they mean"),
        (
            [*plain(["a", "b"] * 3), ("Same text here!", "a"), ("same text here", "b")],
            {},
            "1 text with contradicting labels, such as line 8 and line 9; keep the right one",
        ),
        ([("low", "a"), ("high", "b")] * 4, {}, "'text' has few different, short texts: is it the right column?"),
    ],
)
def test_what_looks_wrong_is_warned_of(pairs: list[tuple[Any, Any]], settings: dict[str, Any], warning: str) -> None:
    assert any(warning in one for one in rows_of(pairs, **settings).warnings)


@pytest.mark.parametrize(
    ("cells", "chosen"),
    [
        (["a|b", "b", "a"], [("a", "b"), ("b",), ("a",)]),
        (["a; b", "b", "a,c"], [("a", "b"), ("b",), ("a,c",)]),
        (["a, b", "b", "a"], [("a", "b"), ("b",), ("a",)]),
        (['["a", "b"]', "[]", "b"], [("a", "b"), (), ("b",)]),
        ([["a", "b"], [], ["b"]], [("a", "b"), (), ("b",)]),
    ],
)
def test_a_cell_of_several_labels_is_taken_apart(cells: list[Any], chosen: list[tuple[str, ...]]) -> None:
    found = rows_of(plain([*cells, "b", "b"]), is_multi_label=True)
    assert list(found.chosen[:3]) == chosen
    assert found.examples()[0].answer is None


def test_the_given_labels_keep_their_order() -> None:
    assert rows_of(plain(["low", "high"] * 3), labels=("low", "mid", "high")).labels == ("low", "mid", "high")


def test_numbers_have_an_order_and_words_need_one() -> None:
    assert in_order(rows_of(plain(["10", "9", "-1", "10", "9", "-1"]))).labels == ("-1", "9", "10")
    with pytest.raises(DataError, match=r"the lowest first: --labels high,low$"):
        in_order(rows_of(plain(["low", "high"] * 3)))


def test_at_most_so_many_rows_are_kept_of_each_label_alike() -> None:
    found = capped(rows_of(plain(["a"] * 20 + ["b"] * 3 + ["c"] * 5)), 9)
    assert [own for (own,) in found.chosen] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert found.texts[0] == "this is text 0"
    assert capped(found, 9) is found
    assert capped(found, None) is found
