"""Examples out of tables, dicts, pairs and texts, and what is said of rows that cannot be used."""

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from abmll.common.errors import DataError
from abmll.tasks import Example
from abmll.tasks.records import examples_of, is_missing, listed, pairs_of, texts_of

TEXTS, LABELS = ["charged twice", "it crashes", "refund?"], ["billing", "bug", "billing"]
OPTIONS = ("billing", "bug")
WANTED = [Example(str(n), text, OPTIONS, OPTIONS.index(LABELS[n])) for n, text in enumerate(TEXTS)]
QUESTIONS = [Example(str(n), text, OPTIONS, None) for n, text in enumerate(TEXTS)]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})

LABELLED: list[Any] = [
    WANTED,
    tuple(WANTED),
    list(zip(TEXTS, LABELS, strict=True)),
    [[text, label] for text, label in zip(TEXTS, LABELS, strict=True)],
    np.array([TEXTS, LABELS]).T,
    zip(TEXTS, LABELS, strict=True),
    FRAME,
    FRAME.astype("category"),
    FRAME.astype("string"),
    FRAME.set_index(pd.Index([7, 7, 3])),
    FRAME.rename(columns={"text": "input", "label": "output"}),
    FRAME.assign(other=[1, 2, 3], input=["no"] * 3, output=["no"] * 3),
    FRAME.to_dict("records"),
    [{"text": text, "label": f" {label} "} for text, label in zip(TEXTS, LABELS, strict=True)],
]


@pytest.mark.parametrize("data", LABELLED, ids=range(len(LABELLED)))
def test_every_form_gives_the_same_examples(data: Any) -> None:
    assert examples_of(data, require_answer=True) == WANTED


@pytest.mark.parametrize("data", LABELLED, ids=range(len(LABELLED)))
def test_every_form_gives_the_same_pairs(data: Any) -> None:
    if not isinstance(data, zip):  # an iterator has been read by the test above
        assert pairs_of(data) == list(zip(TEXTS, LABELS, strict=True))


def test_pairs_need_a_label_each_and_no_second_one() -> None:
    assert pairs_of([("a", "x"), ("b", "x")]) == [("a", "x"), ("b", "x")]
    assert pairs_of([]) == []
    assert pairs_of([{"title": "a", "kind": 3}], text="title", label="kind") == [("a", "3")]
    assert pairs_of([{"text": "a", "options": ["x", "y"], "answer": 1}]) == [("a", "y")]
    for data, words in (
        ([("a", "x"), ("b", None)], r"^examples\[1\]: has no label to learn from"),
        ([{"text": "a"}], r"^examples: no column 'label' or 'output'"),
        (QUESTIONS, r"^examples\[0\]: has no label to learn from"),
        (["a"], r"^examples\[0\]: has no label to learn from"),
    ):
        with pytest.raises(DataError, match=words):
            pairs_of(data)


class Polars:
    """What a table of Polars answers, as far as it is asked."""

    columns = ("text", "label")

    def to_dict(self, *, as_series: bool = True) -> None:
        raise AssertionError("means something else there")

    def to_dicts(self) -> list[dict[str, Any]]:
        return FRAME.to_dict("records")

    def __iter__(self) -> Any:
        raise AssertionError("goes over its columns")


def test_a_table_of_polars_gives_them_too() -> None:
    assert examples_of(Polars(), require_answer=True) == WANTED


def test_columns_of_other_names_are_named() -> None:
    data = FRAME.assign(body=FRAME.text, text="no", queue=FRAME.label, label="no")
    assert examples_of(data, text="body", label="queue", require_answer=True) == WANTED


UNLABELLED: list[Any] = [
    TEXTS,
    tuple(TEXTS),
    (text for text in TEXTS),
    np.array(TEXTS),
    np.array(TEXTS, dtype=object),
    pd.Series(TEXTS, index=[5, 5, 0]),
    pd.Series(TEXTS, dtype="category"),
    FRAME[["text"]],
    [{"input": text} for text in TEXTS],
    [(text, None) for text in TEXTS],
    FRAME.assign(label=[None, float("nan"), None]),
    FRAME.assign(label=pd.Series([pd.NA] * 3, dtype="string")),
]


@pytest.mark.parametrize("data", UNLABELLED, ids=range(len(UNLABELLED)))
def test_known_labels_are_the_options_of_texts(data: Any) -> None:
    assert examples_of(data, OPTIONS) == QUESTIONS


def test_the_options_are_in_the_order_of_the_known_labels() -> None:
    [found] = examples_of([("charged twice", "billing")], ("bug", "billing"))
    assert (found.options, found.answer) == (("bug", "billing"), 1)


NUMBERS: list[tuple[list[Any], tuple[str, ...]]] = [
    ([1, 0, 10, 2], ("0", "1", "10", "2")),
    ([True, False, True, True], ("False", "True")),
    ([1.5, 0.0, 0.0, 1.5], ("0.0", "1.5")),
    ([Decimal("1.0"), 1, "1", 2], ("1", "1.0", "2")),
]


@pytest.mark.parametrize(("labels", "options"), NUMBERS)
@pytest.mark.parametrize("kind", [list, np.array, pd.Series])
def test_labels_of_any_type_are_taken_as_text(labels: list[Any], options: tuple[str, ...], kind: Any) -> None:
    found = examples_of(list(zip("abcd", kind(labels), strict=True)), require_answer=True)
    assert [one.options[one.answer] for one in found if one.answer is not None] == [str(label) for label in labels]
    assert {one.options for one in found} == {options}


def test_rows_with_options_are_questions_of_their_own() -> None:
    rows = [
        {"text": "2 + 2", "options": ["3", "4"], "answer": 1},
        {"text": "", "options": np.array(["3", "4", "5"]), "answer": "3"},
    ]
    wanted = [Example("0", "2 + 2", ("3", "4"), 1), Example("1", "", ("3", "4", "5"), 0)]
    assert examples_of(rows, OPTIONS, require_answer=True) == wanted
    assert examples_of(pd.DataFrame(rows)) == wanted
    labelled = [{"input": "2 + 2", "options": ["3", "4"], "output": label} for label in ("4", 1, np.int64(1), None)]
    assert [one.answer for one in examples_of(labelled)] == [1, 1, 1, None]


def test_nothing_is_no_example() -> None:
    for nothing in ([], (), pd.DataFrame(), pd.Series(dtype=str), np.array([]), iter(())):
        assert examples_of(nothing) == []


PAIR, NAN = ("a", "x"), float("nan")
REFUSED: list[tuple[Any, str]] = [
    ("a text", r"^examples: is one str; give a list, of Examples, dicts, \(text, label\) pairs or texts$"),
    ({"text": "a"}, r"^examples: is one dict; give a list"),
    (WANTED[0], r"^examples: is one Example; give a list"),
    (3, r"^examples: is '3' \(int\); give a list"),
    ([PAIR, 3], r"^examples\[1\]: is '3' \(int\); give Examples"),
    ([PAIR, None], r"^examples\[1\]: is 'None' \(NoneType\); give Examples"),
    ([("a", "b", "c")], r"^examples\[0\]: is \"\('a', 'b', 'c'\)\" \(tuple\); give Examples"),
    ([PAIR, "a"], r"^examples\[1\]: is a text, but examples\[0\] is a pair; give all rows the same form$"),
    ([*WANTED, {"text": "a"}], r"^examples\[3\]: is a dict, but examples\[0\] is an Example"),
    ([PAIR, (None, "y")], r"^examples\[1\]: its text is missing \(None\); give one, or leave the row out$"),
    ([PAIR, (NAN, "y")], r"^examples\[1\]: its text is missing \(nan\)"),
    ([PAIR, (" ", "y")], r"^examples\[1\]: its text is empty; give one, or leave the row out$"),
    ([PAIR, (5, "y")], r"^examples\[1\]: 'text' is 5 \(int\); it must be a text$"),
    ([PAIR, ("b\ud800", "y")], r"^examples\[1\]: 'text' holds half a surrogate pair"),
    ([PAIR, ("b", None)], r"^examples\[1\]: has no label to learn from; give one, or leave the row out$"),
    ([PAIR, ("b", NAN)], r"^examples\[1\]: has no label to learn from"),
    ([PAIR, ("b", np.float32("nan"))], r"^examples\[1\]: has no label to learn from"),
    ([PAIR, ("b", pd.NaT)], r"^examples\[1\]: has no label to learn from"),
    ([PAIR, ("b", "")], r"^examples\[1\]: its label is empty; give every label a text$"),
    ([PAIR, ("b", ["x"])], r"^examples\[1\]: its label is \"\['x'\]\" \(list\); give one text or number$"),
    ([PAIR, ("b", np.array([1, 0]))], r"^examples\[1\]: its label is '\[1 0\]' \(ndarray\)"),
    ([PAIR, PAIR], r"^examples: all have the label 'x'; there must be at least 2$"),
    ([(str(n), n) for n in range(201)], r"^examples: 201 distinct labels; at most 200 are possible$"),
    (["a", "b"], r"^examples\[0\]: has no label to learn from"),
    ([{"txt": "a", "label": "x"}], r"^examples: no column 'text' or 'input'; name it with text=..., of txt, label$"),
    ([{"text": "a", "lab": "x"}], r"^examples: no column 'label' or 'output'; name it with label=..., of text, lab$"),
    ([{"text": "a", "label": 1}, {"label": 2}], r"^examples\[1\]: no key 'text', which other rows have; add it$"),
    ([{"text": "a", "label": 1}, {"text": "b"}], r"^examples\[1\]: has no label to learn from"),
    ([{"text": "a", "options": "xy", "answer": 1}], r"^examples\[0\]: 'options': is one str"),
    ([{"text": "a", "options": ["x", "y"], "answer": 2}], r"^examples\[0\]: answer 2 is out of range"),
    ([{"text": "a", "options": ["x", "y"], "label": "z"}], r"^examples\[0\]: answer 'z' is not among the 2 options"),
    ([{"text": "a", "options": ["x", "y"]}], r"^examples\[0\]: answer is null"),
    (
        [{"text": "a", "options": ["x", "y"], "answer": 0}, {"text": "b", "answer": 0}],
        r"^examples\[1\]: no key 'options'",
    ),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_learned_is_refused_in_one_line(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        examples_of(data, require_answer=True)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_named_with_its_neighbour() -> None:
    for names in ({"text": "texd"}, {"label": "lapel"}):
        [(key, given)] = names.items()
        with pytest.raises(
            DataError, match=rf"^examples: no column '{given}'. Did you mean '{key}'\? There are text, "
        ):
            examples_of(FRAME, **names, require_answer=True)


def test_an_unknown_label_is_refused() -> None:
    words = r"^examples\[1\]: the label 'lunch' is none of billing, bug; correct it, or learn anew$"
    with pytest.raises(DataError, match=words):
        examples_of([("a", "bug"), ("b", "lunch")], OPTIONS)


def test_without_known_labels_a_text_is_no_question() -> None:
    for data in (TEXTS, list(zip(TEXTS, LABELS, strict=True))):
        with pytest.raises(DataError, match=r"^examples: nothing says what the labels are; give Examples, or dicts"):
            examples_of(data)


COLUMNS: list[Any] = [
    TEXTS,
    np.array(TEXTS),
    np.array(TEXTS, dtype=object)[:, None],
    pd.Series(TEXTS),
    FRAME[["text"]],
    pd.DataFrame({"anything": TEXTS}),
    [[text] for text in TEXTS],
]


@pytest.mark.parametrize("data", COLUMNS, ids=range(len(COLUMNS)))
def test_one_column_is_a_list_of_texts(data: Any) -> None:
    found = texts_of(data)
    assert found == TEXTS
    assert {type(text) for text in found} == {str}


NO_COLUMN: list[tuple[Any, str]] = [
    (FRAME, r"^X\[0\]: has 2 columns; give the one that holds the texts$"),
    (np.zeros((2, 3)), r"^X\[0\]: has 3 columns"),
    (np.zeros((2, 1)), r"^X\[0\]: 'text' is 0.0 \(float\); it must be a text$"),
    (["a", None], r"^X\[1\]: its text is missing"),
    (pd.Series(["a", None]), r"^X\[1\]: its text is missing"),
    (["a", ""], r"^X\[1\]: its text is empty"),
    (["a", []], r"^X\[1\]: has 0 columns"),
    ("a", r"^X: is one str"),
]


@pytest.mark.parametrize(("data", "words"), NO_COLUMN, ids=range(len(NO_COLUMN)))
def test_what_is_no_column_of_texts_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        texts_of(data)


def test_an_array_of_no_dimension_has_no_rows() -> None:
    with pytest.raises(DataError, match=r"^X: is '1' \(int\)"):
        listed(np.array(1), "X")


def test_what_is_missing() -> None:
    assert all(map(is_missing, [None, NAN, np.nan, np.float32("nan"), pd.NA, pd.NaT]))
    assert not any(map(is_missing, ["", "nan", 0, 0.0, False, [], np.array([NAN]), Decimal(1)]))
