"""Written answers on the command line: train, adapt, predict, evaluate, and what refuses them."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abmll import TaskPosterior
from abmll.model.generation import WrittenAnswer
from tests.cli.conftest import Outcome, Workspace, write_rows


def written_rows(seed: int, size: int = 12) -> list[dict[str, Any]]:
    words = [f"{chr(97 + (seed + index) % 26)}{index}x" for index in range(size)]
    return [{"input": word, "output": word[::-1]} for word in words]


@pytest.fixture
def written(work: Workspace, abmll: Callable[..., Outcome]) -> Workspace:
    """The workspace with written tasks in ``words/``, a suite of them, a run and a posterior."""
    for number in range(2):
        write_rows(work.root / f"words/word{number}.jsonl", written_rows(number))
    write_rows(work.root / "words/word2.jsonl", written_rows(2))
    write_rows(work.root / "new.jsonl", [{"input": row["input"]} for row in written_rows(3, 3)])
    text = "name: words\ntrain: [word0, word1]\nevaluation: [word2]\n"
    (work.root / "words.yaml").write_text(text)
    (work.root / "words").rename(work.root / "pool")
    command = work.train.replace("--tasks tasks", "--tasks words.yaml --data-dir pool")
    assert abmll(command, "--max-steps 2 --output-dir wrun --quiet") == (0, "", "")
    adapted = abmll("adapt pool/word2.jsonl --theta wrun --steps 3 --method abmll --output-dir wnew")
    assert adapted.code == 0
    assert "gradient steps" in adapted.out
    assert "inverse temperature" not in adapted.out
    return work


def test_answers_come_with_their_agreement(written: Workspace, abmll: Callable[..., Outcome]) -> None:
    command = "predict wnew --input new.jsonl --max-new-tokens 4 -o"
    shown = abmll(command, "answers.jsonl --num-answers 3")
    assert (shown.code, "of 3 answers each" in shown.out) == (0, True)
    rows = [json.loads(line) for line in (written.root / "answers.jsonl").read_text().splitlines()]
    assert [len(row["samples"]) for row in rows] == [3, 3, 3]
    assert all(row["output"] in row["samples"] and 1 / 3 <= row["agreement"] <= 1 for row in rows)
    once = json.loads(abmll(command, "answers.csv --json").out)
    assert (once["agreement"], once["exact_match"], once["examples"]) == (None, None, 3)
    with open(written.root / "answers.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["task", "id", "output", "agreement", "entropy", "reference"]
    assert {row["agreement"] for row in table} == {""}


def test_empty_answers_are_counted(
    written: Workspace, abmll: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TaskPosterior.generate

    def generate(*given: Any, **how: Any) -> list[WrittenAnswer]:
        first, *rest = own(*given, **how)
        return [replace(first, output=" "), *rest]

    monkeypatch.setattr(TaskPosterior, "generate", generate)
    command = "predict wnew --input pool/word2.jsonl --max-new-tokens 4 -o answers.jsonl --overwrite"
    found = json.loads(abmll(command, "--json").out)["empty"]
    assert found >= 1
    assert re.search(rf"^empty +{found} answers?, of which nothing was written$", abmll(command).out, re.MULTILINE)
    evaluated = "evaluate wrun --suite words.yaml --data-dir pool --steps 2 --max-new-tokens 4 --output-dir scores"
    said = abmll(evaluated).err
    found = json.loads((written.root / "scores/metrics.json").read_text())["mean"]["empty"]
    assert found >= 1
    assert re.search(rf"^{found} answers? of which nothing was written$", said, re.MULTILINE)


def test_partly_answered_files_name_the_line_without_an_answer(
    written: Workspace, abmll: Callable[..., Outcome], refused: Callable[..., str]
) -> None:
    rows = [{"input": "one", "output": "a"}, {"input": "two"}, {"input": "three", "output": "b"}]
    write_rows(written.root / "some.jsonl", rows)
    refused("adapt some.jsonl --theta wrun --output-dir out", "some.jsonl:2: no key 'output'. Add it.")
    refused("tasks validate some.jsonl", "some.jsonl:2: no key 'output'. Add it.")
    known = json.loads(abmll("predict wnew --input some.jsonl --max-new-tokens 2 -o answers.csv --json").out)
    assert (known["examples"], known["answered"]) == (3, 2)


def test_settings_of_choosing_are_refused_where_answers_are_written(
    written: Workspace, refused: Callable[..., str]
) -> None:
    command = "evaluate wrun --suite words.yaml --data-dir pool --output-dir e"
    refused(f"{command} --predictive linearized", "predictive: these answers are written, not chosen; leave it out")
    refused(f"{command} --num-samples 9", "num_samples: these answers are written, not chosen; leave it out")


def test_known_answers_are_scored_and_tables_keep_their_columns(
    written: Workspace, abmll: Callable[..., Outcome]
) -> None:
    known = abmll("predict wnew --input pool/word2.jsonl --max-new-tokens 3 -o a.csv --json")
    assert json.loads(known.out)["exact_match"] is not None
    (written.root / "table.csv").write_text("message,when\nabc,monday\nxyz,tuesday\n", encoding="utf-8")
    assert abmll("predict wnew --input table.csv --text message --max-new-tokens 3 -o b.csv").code == 0
    first = (written.root / "b.csv").read_text(encoding="utf-8").splitlines()[0]
    assert first == "message,when,output,agreement,entropy"


def test_a_suite_is_evaluated(written: Workspace, abmll: Callable[..., Outcome]) -> None:
    command = "evaluate wrun --suite words.yaml --data-dir pool --steps 2 --max-new-tokens 3 --num-answers 2"
    shown = abmll(command, "--output-dir scores")
    assert shown.code == 0, shown.err
    assert "rougeL" in shown.out
    document = json.loads((written.root / "scores/metrics.json").read_text())
    assert document["format"] == "abmll-written-evaluation-1"
    assert set(document["tasks"]) == {"word2"}
    assert document["mean"]["exact_match"] == document["tasks"]["word2"]["exact_match"]
    assert len((written.root / "scores/predictions.jsonl").read_text().splitlines()) == 2


def test_a_csv_is_a_choice_unless_generate_is_said(written: Workspace, abmll: Callable[..., Outcome]) -> None:
    (written.root / "pairs.csv").write_text("input,output\nabc,cba\nxyz,zyx\nuvw,wvu\n", encoding="utf-8")
    assert "options   3" in abmll("tasks show pairs.csv --limit 0").out
    assert "options   0" in abmll("tasks show pairs.csv --limit 0 --generate").out
    adapt = "adapt pairs.csv --theta wrun --steps 1 --json --output-dir"
    assert json.loads(abmll(adapt, "w1 --generate").out)["steps"] == 1
    assert TaskPosterior.from_pretrained("w1").settings["written"] is True
    assert "written" not in TaskPosterior.from_pretrained("new").settings


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        ("adapt pool/word2.jsonl --output-dir x", ["--theta"]),
        ("adapt pool/word2.jsonl --theta wrun --adapt head --output-dir x", ["'abmll-head' chooses between options"]),
        ("train --tasks suite.yaml --generate --output-dir x", ["generate", "a suite's files say themselves"]),
        ("predict new --input new.jsonl -o a.csv --generate --num-answers 0", ["--num-answers is '0'"]),
        ("compare --suite words.yaml --data-dir pool --methods abmll --output-dir x", ["written, not chosen"]),
        ("predict new --input pool/word2.jsonl -o a.csv", ["written, not chosen; use generate"]),
        ("predict new --input questions.jsonl -o a.csv --num-answers 3", ["num_answers", "chosen, not written"]),
        ("evaluate run --suite suite.yaml --output-dir x --do-sample", ["do_sample", "chosen, not written"]),
        ("adapt numbers.jsonl --theta wrun --output-dir x", ["numbers.jsonl:1", "regression is not offered"]),
    ],
)
def test_refusals(command: str, fragments: list[str], written: Workspace, refused: Callable[..., str]) -> None:
    write_rows(written.root / "numbers.jsonl", [{"input": f"n {number}", "output": number / 7} for number in range(12)])
    refused(command, *fragments)


def test_rouge_is_named_where_it_is_missing(
    written: Workspace, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abmll.experiments.written_metrics.find_spec", lambda name: None)
    command = "evaluate wrun --suite words.yaml --data-dir pool --output-dir scores"
    refused(command, 'pip install "abmll[generate]"')


def test_no_file_is_left_of_a_refused_table(written: Workspace, refused: Callable[..., str]) -> None:
    Path("taken.csv").write_text("text,output\nabc,x\n", encoding="utf-8")
    refused("predict wnew --input taken.csv -o a.csv", "has a column 'output'")
