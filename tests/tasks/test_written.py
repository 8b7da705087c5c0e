"""Which files are tasks whose answers are written, and that all others are what they were."""

import json
from pathlib import Path
from typing import Any

import pytest

from abmll.common.config import PromptConfig
from abmll.common.errors import DataError
from abmll.tasks import Example, Task, WrittenExample, check_leaks, load_task, load_tasks, render
from abmll.tasks.types import content_hash

ROWS = [{"input": "2 words", "output": "zwei Worte"}, {"input": "a cat", "output": "eine Katze", "id": "cat"}]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_outputs_alone_are_written_but_in_a_table(tmp_path: Path) -> None:
    task = load_task(lines(tmp_path / "a.jsonl", ROWS))
    assert task.is_written
    assert task.examples[0] == WrittenExample.of("a/0", "2 words", "zwei Worte")
    assert (task.examples[1].id, task.examples[1].options, task.examples[1].answer) == ("cat", ("eine Katze",), 0)
    table = tmp_path / "a.csv"
    table.write_text("input,output\na,x\nb,y\n", encoding="utf-8")
    chosen, written = load_task(table), load_task(table, generate=True)
    assert (chosen.is_written, chosen.examples[0].options) == (False, ("x", "y"))
    assert (written.is_written, written.examples[0].options) == (True, ("x",))
    crossfit = tmp_path / "few_16_100_train.tsv"
    crossfit.write_text("a\tx\nb\ty\n", encoding="utf-8")
    assert not load_task(crossfit).is_written
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"few_16_100_{split}.tsv").write_text("a\tx\nb\ty\n", encoding="utf-8")
    [task] = load_tasks(folder, generate=True)
    assert (task.is_written, len(task.train), len(task.test)) == (True, 2, 2)


def test_parquet_is_read_alike(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"input": "a", "output": "x"}]), tmp_path / "a.parquet")
    assert load_task(tmp_path / "a.parquet").examples == (WrittenExample.of("a/0", "a", "x"),)


def test_options_or_an_answer_are_a_choice(tmp_path: Path) -> None:
    rows = [{"input": "a", "options": ["x", "y"], "output": "x"}]
    assert not load_task(lines(tmp_path / "a.jsonl", rows)).is_written
    with pytest.raises(DataError, match=r"a.jsonl:2: no key 'options'"):
        load_task(lines(tmp_path / "a.jsonl", [*rows, ROWS[0]]))


def test_questions_need_no_output(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"input": "a"}, {"input": "b", "output": "x"}])
    task = load_task(path, require_answer=False, generate=True)
    assert [(one.options, one.answer) for one in task.examples] == [((), None), (("x",), 0)]
    with pytest.raises(DataError, match=r"a.jsonl:1: no key 'output'"):
        load_task(path, generate=True)


@pytest.mark.parametrize("as_text", [False, True])
def test_regression_is_refused_unless_the_numbers_are_to_be_written(as_text: bool, tmp_path: Path) -> None:
    values = [index / 3 for index in range(11)]
    rows = [{"input": f"n {value}", "output": str(value) if as_text else value} for value in values]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a.jsonl:1: all outputs are numbers.*regression is not offered.*ranges"):
        load_task(path)
    if as_text:
        assert load_task(path, generate=True).is_written
        assert load_task(lines(path, rows[:10])).is_written  # few numbers may be anything


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input": " ", "output": "x"}, "the input is empty"),
        ({"input": "a", "output": " "}, "the output is empty"),
        ({"input": "a", "output": ["x"]}, "'output' is"),
        ({"input": "a", "output": "x", "split": "both"}, "split is"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"a.jsonl:2: {problem}"):
        load_task(lines(tmp_path / "a.jsonl", [ROWS[0], row]))


def test_one_task_is_of_one_kind() -> None:
    chosen, written = Example("0", "a", ("x", "y"), 0), WrittenExample.of("1", "b", "z")
    with pytest.raises(DataError, match=r"task 't': some answers are written and some are chosen"):
        Task("t", (chosen, written))
    with pytest.raises(DataError, match="2 options; a written answer has its output alone"):
        WrittenExample("0", "a", ("x", "y"), 0)


def test_the_same_question_with_another_output_stays_on_its_side() -> None:
    first, second = WrittenExample.of("0", "A cat.", "x"), WrittenExample.of("1", "a cat", "y")
    assert content_hash(first) == content_hash(second)
    assert check_leaks([Task("a", (first,))], [Task("b", (second,))])


@pytest.mark.parametrize("answer", ["letter", "text"])
def test_the_prompt_lists_nothing(answer: Any) -> None:
    rendered = render(WrittenExample.of("0", " a cat ", " eine Katze "), "german", PromptConfig(answer=answer))
    text = rendered.prefix + rendered.input + rendered.suffix
    assert text == ("Return only the text of the correct answer for the question below.\n\ngerman: a cat\nAnswer:")
    assert rendered.continuations == (" eine Katze",)
