"""Columns under other names, in files of every kind; and rows of text and label as a task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.common.errors import ConfigError, DataError
from abmll.tasks.columns import find_columns, find_text, is_task_file, read_table
from abmll.tasks.mapping import parse_mapping, renamed
from abmll.tasks.read import load_task, load_tasks, task_of
from abmll.tasks.rows import Row
from abmll.tasks.suite import load_suite

NAMES = {"sentence": "text", "category": "label"}
ROWS = [
    {"no": 1, "sentence": "it crashed", "category": "bug"},
    {"no": 2, "sentence": "pay me back", "category": "refund"},
    {"no": 3, "sentence": "no label yet", "category": None},
    {"no": 4, "sentence": "a blank page", "category": "bug"},
]


def write_table(path: Path) -> None:
    mark = "\t" if path.suffix == ".tsv" else ","
    lines = [mark.join("" if cell is None else str(cell) for cell in row.values()) for row in ROWS]
    path.write_text("\n".join([mark.join(ROWS[0]), *lines]) + "\n", encoding="utf-8")


def test_texts_of_a_command_line() -> None:
    assert parse_mapping(("sentence=text", " a=b = label ")) == {"sentence": "text", "a=b": "label"}
    assert parse_mapping(None) == {}
    assert parse_mapping(("ending0=option_0", "ending1=choice_b")) == {"ending0": "option_0", "ending1": "choice_b"}


@pytest.mark.parametrize(
    ("texts", "fragment"),
    [
        (("sentence",), "'sentence' is no pair; write THEIRS=OURS, such as sentence=text"),
        (("=text",), "'=text' is no pair"),
        (("a=txt",), "'a=txt': use one of text, label, input, options, "),
        (("a=txt",), "Did you mean 'text'?"),
        (("a=text", "b=text"), "'a' and 'b' cannot both be 'text'; leave one out"),
        (("a=text", "a=label"), "'a' is named twice"),
    ],
)
def test_what_is_no_mapping(texts: tuple[str, ...], fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mapping(texts)
    assert fragment in str(caught.value)


def test_a_column_of_our_name_gives_way_to_the_mapped_one() -> None:
    rows = [Row("t:1", {"text": "short", "body": "long", "label": "a"}), Row("t:2", {"text": "x", "label": "b"})]
    assert [row.values for row in renamed(rows, {"body": "text", "text": "id"}, "t")] == [
        {"id": "short", "text": "long", "label": "a"},
        {"id": "x", "label": "b"},
    ]
    assert renamed(rows, {"body": "text"}, "t")[0] == Row("t:1", {"text": "long", "label": "a"})


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.xlsx"])
def test_a_mapped_file_is_a_task(name: str, tmp_path: Path) -> None:
    path, said = tmp_path / name, []
    if name in ("t.csv", "t.tsv"):
        write_table(path)
    elif name == "t.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    else:
        frame = pytest.importorskip("pandas").DataFrame(ROWS)
        frame.to_parquet(path) if name == "t.parquet" else frame.to_excel(path, index=False)
    task = load_task(path, column_mapping=NAMES, announce=said.append)
    assert [(example.input, example.answer) for example in task.examples] == [
        ("it crashed", 0),
        ("pay me back", 1),
        ("a blank page", 0),
    ]
    assert {example.options for example in task.examples} == {("bug", "refund")}
    assert said == [f"{path}: 1 row without a label left out"]
    assert load_tasks(path, column_mapping=NAMES) == [task]
    with pytest.raises(DataError, match=r"no column 'sentense' \(--column-mapping\). Did you mean 'sentence'\?"):
        load_tasks(path, column_mapping={"sentense": "text"})


def test_every_file_of_a_folder_or_suite_is_mapped(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.csv")
    assert [len(task.examples) for task in load_tasks(tmp_path, column_mapping=NAMES)] == [3, 3]
    (tmp_path / "mine.yaml").write_text("name: mine\ntrain: [a]\nevaluation: [b]\n")
    suite = load_suite(tmp_path / "mine.yaml", column_mapping=NAMES)
    assert [task.name for task in (*suite.train, *suite.evaluation)] == ["a", "b"]


def test_text_and_label_need_no_mapping(write_rows: Callable[..., Path]) -> None:
    rows: list[dict[str, Any]] = [{"text": f"text {n}", "label": n % 2 > 0, "note": n} for n in range(3)]
    task = load_task(write_rows(rows))
    assert [(example.options, example.answer) for example in task.examples] == [
        (("False", "True"), n) for n in (0, 1, 0)
    ]
    several = load_tasks(write_rows([{**row, "task": name} for name in "ab" for row in rows]))
    assert [(task.name, len(task.examples)) for task in several] == [("a", 3), ("b", 3)]


@pytest.mark.parametrize(
    ("labels", "fragment"),
    [
        (["a", "a"], "task.jsonl: all rows have the label 'a'; at least 2 labels are needed"),
        ([None, " "], "task.jsonl: no row has both a text and a label"),
        ([str(n) for n in range(201)], "task.jsonl: 201 labels, of which each would be an option; at most 200"),
        (["a", ["b"]], "task.jsonl:2: its label is \"['b']\" (list); give one text or number"),
    ],
)
def test_labels_that_cannot_be_learned(labels: list[Any], fragment: str, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(DataError) as caught:
        load_task(write_rows([{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]))
    assert fragment in str(caught.value)


def test_a_table_keeps_its_names(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv", NAMES)
    assert table.columns == ("no", "sentence", "category")
    assert find_columns(table) == ("sentence", "category")
    assert find_columns(table, label="no").label == "no"  # a flag wins
    assert find_text(table) == "sentence"
    assert not is_task_file(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=r"no column 'categories' \(--column-mapping\). Did you mean 'category'\?"):
        read_table(tmp_path / "t.csv", {"categories": "label"})


def test_a_mapped_column_says_what_is_for_testing(tmp_path: Path) -> None:
    from abmll.tasks.labelled import labelled_rows

    path = tmp_path / "t.csv"
    path.write_text("text,label,part\n" + "".join(f"t {n},{'ab'[n % 2]},{'test' * (n > 5)}\n" for n in range(8)))
    table = read_table(path, {"part": "split"})
    assert labelled_rows(table, find_columns(table)).held_out == 2


@pytest.mark.parametrize(
    ("name", "text", "mapping"),
    [
        ("t.csv", 'q,options,answer\n"Is it?","[""yes"", ""no""]",1\n', {"q": "input"}),
        (
            "t.csv",
            "q,first,second,answer\nIs it?,yes,no,no\n",
            {"q": "input", "first": "option_1", "second": "option_2"},
        ),
        ("t.csv", "input,output\nIs it?,no\n not? ,yes\n,no\n", {}),
        ("t.tsv", 'a "good film\tpositive\nbad\tnegative\n'.replace('"', ""), {}),
        ("t.tsv", "input\toutput\nx\ta\ny\tb\n", {}),
        ("t.jsonl", '{"q": "Is it?", "options": ["yes", "no"], "answer": 1}\n', {"q": "input"}),
    ],
)
def test_a_table_becomes_the_same_task_as_its_file(
    name: str, text: str, mapping: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    table = read_table(path, mapping)
    assert is_task_file(path, table)
    assert task_of(table, path) == load_task(path, column_mapping=mapping)
