"""Rows of datasets as questions: every form on a made-up row, and every task of the shipped collections."""

import json
from collections import Counter
from typing import Any

import pytest

from abmll.common.errors import ConfigError, DataError
from abmll.tasks.collection import (
    Options,
    Recipe,
    collection_with,
    parse_collection,
    read_collection,
    shipped_collections,
)
from abmll.tasks.definition import read_suite
from abmll.tasks.recipe import PAIR, columns_of, example_of, value_at
from abmll.tasks.types import Example

ALL = [(name, task) for name in shipped_collections() for task in read_collection(name).tasks]
LETTERED = "Which is {}? (A) the one or (B) the other"


def recipe(**changes: Any) -> Recipe:
    usual = {"dataset": "me/x", "licence": "mine", "pool": ("train",), "input": "{text}"}
    return Recipe.model_validate({**usual, "options": ("no", "yes"), "answer": {"index": "label"}, **changes})


def asked(how: Recipe, **row: Any) -> Example | None:
    return example_of(how, "x/train/0", row)


@pytest.mark.parametrize(
    ("changes", "row", "options", "answer"),
    [
        ({}, {"label": 1}, ("no", "yes"), 1),
        ({}, {"label": "0"}, ("no", "yes"), 0),
        ({}, {"label": True}, ("no", "yes"), 1),
        ({"answer": {"index": "label", "start": 1}}, {"label": "2"}, ("no", "yes"), 1),
        ({"answer": {"letter": "label"}}, {"label": "B"}, ("no", "yes"), 1),
        (
            {"answer": {"letter": "key", "labels": "c.label"}},
            {"key": "2", "c": {"label": ["1", "2"]}},
            ("no", "yes"),
            1,
        ),
        ({"answer": {"text": "label"}}, {"label": " yes"}, ("no", "yes"), 1),
        ({"answer": {"text": "out.0.answer"}}, {"out": [{"answer": "no"}, {"answer": "yes"}]}, ("no", "yes"), 0),
        ({"answer": {"majority": "a.label"}}, {"a": {"label": [1, 0, 1]}}, ("no", "yes"), 1),
        ({"answer": {"majority": "a.label"}}, {"a": [{"label": 1}, {"label": 0}, {"label": 0}]}, ("no", "yes"), 0),
        ({"answer": {"rating": "r", "low": 0.4, "high": 0.6}}, {"r": 0.39}, ("no", "yes"), 0),
        ({"answer": {"rating": "r", "low": 0.4, "high": 0.6}}, {"r": 0.61}, ("no", "yes"), 1),
        ({"options": {"columns": ["a", "b"]}}, {"a": "x", "b": 7, "label": 1}, ("x", "7"), 1),
        ({"options": {"items": "c.text"}}, {"c": {"text": ["x", "y", "z"]}, "label": 2}, ("x", "y", "z"), 2),
        ({"options": {"items": "c.text"}}, {"c": [{"text": "x"}, {"text": "y"}], "label": 0}, ("x", "y"), 0),
    ],
)
def test_forms(changes: dict[str, Any], row: dict[str, Any], options: tuple[str, ...], answer: int) -> None:
    assert asked(recipe(**changes), text=" A b. ", **row) == Example("x/train/0", "A b.", options, answer)


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, {"label": -1}),
        ({}, {"label": None}),
        ({}, {"label": 2}),
        ({}, {"label": "yes"}),
        ({"answer": {"text": "label"}}, {"label": "perhaps"}),
        ({"answer": {"letter": "label"}}, {"label": ""}),
        ({"answer": {"majority": "label"}}, {"label": [0, 1, 2]}),
        ({"answer": {"majority": "label"}}, {"label": []}),
        ({"answer": {"rating": "r", "low": 0.4, "high": 0.6}}, {"r": 0.5}),
        ({"answer": {"rating": "r"}}, {"r": None}),
        ({"answer": {"text": "out.0.answer"}}, {"out": []}),
        ({"options": {"items": "c"}}, {"c": ["same", "same "], "label": 0}),
        ({"options": {"items": "c"}}, {"c": None, "label": 0}),
        ({"options": {"scores": "s"}, "answer": {"scores": "s"}}, {"s": '{"a": 1, "b": 1}'}),
        ({"options": {"scores": "s"}, "answer": {"scores": "s"}}, {"s": None}),
        ({"options": {"scores": "s"}, "answer": {"scores": "s"}}, {"s": "no JSON"}),
    ],
)
def test_rows_that_are_no_questions(changes: dict[str, Any], row: dict[str, Any]) -> None:
    assert asked(recipe(**changes), text="A b.", **row) is None


def test_the_text_takes_lists_and_depths() -> None:
    how = recipe(input="{a.b} | {words} | {none} | {list.1}")
    example = asked(how, a={"b": " x "}, words=["one", " two"], none=None, list=["p", "q"], label=0)
    assert example is not None
    assert example.input == "x | one two |  | q"
    assert columns_of(how) == {"a", "words", "none", "list", "label"}


def test_scores_may_be_json_and_keep_no_order() -> None:
    how = recipe(options={"scores": "e.0.s"}, answer={"scores": "e.0.s"}, shuffle=True)
    rows = [{"text": f"q{n}", "e": [{"s": '{"a": 0, "b": 1, "c": 0.0}'}]} for n in range(90)]
    examples = [asked(how, **row) for row in rows]
    assert {example.options[example.answer or 0] for example in examples if example} == {"b"}
    places = Counter(example.answer for example in examples if example)
    assert len(places) == 3  # of 90 each place has 30 on average
    assert min(places.values()) > 12
    filled = {"text": "q0", "e": [{"s": {"a": 0, "b": 1, "c": 0, "other": None}}]}
    assert asked(how, **filled) == examples[0]


def test_where_the_first_is_right_the_options_are_shuffled() -> None:
    how = recipe(options={"columns": ["good", "bad"]}, answer={"first": True}, shuffle=True)
    examples = [asked(how, text=f"q{n}", good="g", bad="b") for n in range(60)]
    assert {example.options[example.answer or 0] for example in examples if example} == {"g"}
    assert 15 < sum(example.answer == 0 for example in examples if example) < 45


def test_a_pair_is_two_texts_of_which_one_is_right() -> None:
    how = recipe(input="1: {first} 2: {second}", options=PAIR, answer={"pair": ("good", "bad")})
    assert columns_of(how) == {"good", "bad"}
    places = Counter[int]()
    for number in range(60):
        example = asked(how, good=f"right {number}", bad=f"wrong {number}")
        assert example is not None
        assert example.answer is not None
        assert example.input.split(" 2: ")[example.answer].endswith(f"right {number}")
        places[example.answer] += 1
    assert min(places.values()) > 15


def test_lettered_options_stand_in_the_text() -> None:
    how = recipe(input="{q}", options={"lettered": "q"}, answer={"index": "i"})
    example = asked(how, q=LETTERED.format("right"), i=1)
    assert example == Example("x/train/0", "Which is right?", ("the one", "the other"), 1)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"no column 'c.txt'. Did you mean 'text'\? There are: label, text"):
        value_at({"c": {"text": [], "label": []}}, "c.txt")
    with pytest.raises(DataError, match="no column 'texts'"):
        asked(recipe(input="{texts}"), text="t", label=0)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"pool": ()}, "give train and test, or pool"),
        ({"train": "train"}, "give train and test, or pool"),
        ({"pool": (), "test": "test"}, "give train and test, or pool"),
        ({"answer": {}}, "give one of index, letter, .* not none"),
        ({"answer": {"index": "a", "text": "b"}}, "not index, text"),
        ({"options": {"columns": ["a"], "items": "b"}}, "columns, items"),
        ({"answer": {"first": True}}, "shuffle must be true"),
        ({"revision": "main"}, "revision"),
        ({"dataset": "../x"}, "dataset"),
        ({"script": "x.py"}, "script"),
    ],
)
def test_recipes_that_are_refused(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        recipe(**changes)


def test_a_file_that_is_wrong_says_where() -> None:
    text = (
        "name: x\ndescription: d\ntasks:\n  t: {dataset: a/b, licence: l, pool: [train], input: i, options: [a, b]}\n"
    )
    with pytest.raises(ConfigError, match=r"^here: tasks.t.answer: Field required$"):
        parse_collection(text, "here")
    with pytest.raises(ConfigError, match=r"^here: "):
        parse_collection("- 1", "here")


def test_no_two_collections_have_a_task() -> None:
    assert len({task for _, task in ALL}) == len(ALL)
    assert [collection_with(task) for task in ("glue-cola", "wino_grande", "nothing")] == [
        "crossfit",
        "winogrande",
        None,
    ]


@pytest.mark.parametrize(
    ("suite", "wanted"),
    [
        ("cls-45", {"crossfit"}),
        ("nli", {"crossfit"}),
        ("nli-leaky", {"crossfit"}),
        ("para", {"crossfit"}),
        ("cls-23", {"crossfit", "unifiedqa"}),
        ("mcqa", {"crossfit", "unifiedqa", "winogrande"}),
        ("winogrande", {"crossfit", "winogrande"}),
        ("chembench", {"crossfit", "chembench"}),
        ("legalbench", {"crossfit", "legalbench"}),
        ("legalbench-heldout", {"legalbench"}),
    ],
)
def test_the_collections_have_what_the_suites_name(suite: str, wanted: set[str]) -> None:
    file = read_suite(f"suite:{suite}")
    brought = {task: collection_with(task) for task in (*file.train, *file.evaluation)}
    assert {name for name in brought.values() if name} == wanted
    elsewhere = set(read_collection("legalbench").elsewhere)
    assert {task for task, name in brought.items() if name is None} <= elsewhere


@pytest.mark.parametrize(("collection", "task"), ALL)
def test_every_task_of_the_shipped_collections(collection: str, task: str) -> None:
    how = read_collection(collection).tasks[task]
    assert how.licence
    answers = set()
    for place in range(2):
        row = made_row(how, place)
        example = example_of(how, f"{task}/train/0", row)
        assert example is not None
        assert "{" not in example.input
        assert example.input or how.input == "{sentence}"
        answers.add(example.options[example.answer or 0])
    # Where the right one is always the first, or of a pair, the rows of two places are the same row.
    assert len(answers) == (1 if how.answer.first or how.answer.pair else 2)


def made_row(how: Recipe, place: int) -> dict[str, Any]:
    """A row with every column that the recipe reads, whose right option is that of the place."""
    answer, options = how.answer, how.options
    row: dict[str, Any] = {}
    for part in how.input.split("{")[1:]:
        if not (answer.pair and part.split("}")[0] in ("first", "second")):
            put(row, part.split("}")[0], "a text")
    texts = list(options) if isinstance(options, tuple) else ["option 0", "option 1"]
    if isinstance(options, Options):
        for column, text in zip(options.columns or (), texts, strict=False):
            put(row, column, text)
        for column in (options.columns or ())[2:]:
            put(row, column, f"other {column}")
        if options.items:
            put(row, options.items, texts)
        if options.lettered:
            put(row, options.lettered, LETTERED.format("it"))
        if options.scores:
            put(row, options.scores, json.dumps({"option 0": 1 - place, "option 1": place}))
    if answer.index:
        put(row, answer.index, place + answer.start)
    elif answer.letter:
        put(row, answer.letter, "AB"[place])
        if answer.labels:
            put(row, answer.labels, ["A", "B"])
    elif answer.text:
        put(row, answer.text, texts[place])
    elif answer.majority:
        put(row, answer.majority, [place, place, 1 - place])
    elif answer.rating:
        put(row, answer.rating, [answer.low - 0.1, answer.high + 0.1][place])
    for column, text in zip(answer.pair or (), ("right", "wrong"), strict=False):
        put(row, column, text)
    return row


def put(row: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a path; a place of a list is the first."""
    head, _, rest = path.partition(".")
    if not rest:
        row[head] = value
    elif rest.partition(".")[0].isdigit():
        inner = row.setdefault(head, [{}])[0]
        put(inner, rest.partition(".")[2], value)
    else:
        put(row.setdefault(head, {}), rest, value)
