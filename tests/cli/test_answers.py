"""The forms of a file of answers."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from abmll.cli import answers
from abmll.cli.answers import check_form, write_answers, write_table
from abmll.common.errors import ConfigError
from abmll.tasks import Example

ALIKE = [Example("a", "x", ("yes", "no"), 0), Example("b", "y", ("no", "yes"), None)]
UNLIKE = [ALIKE[0], Example("c", "z", ("left, down", "right"), 1)]


def rows(examples: list[Example]) -> list[dict[str, Any]]:
    return [
        {"task": "t", "id": one.id, "probs": [0.25, 0.75], "prediction": 1, "answer": one.answer, "entropy": 0.5}
        for one in examples
    ]


def table(path: Path, separator: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=separator))


def test_json_lines(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.jsonl", ALIKE, rows(ALIKE))
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row.pop("label") for row in found] == ["no", "yes"]
    assert found == rows(ALIKE)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_the_same_options_are_columns(tmp_path: Path, name: str, separator: str) -> None:
    write_answers(tmp_path / name, ALIKE, rows(ALIKE))
    one, other = table(tmp_path / name, separator)
    assert list(one) == ["task", "id", "prediction", "label", "prob_yes", "prob_no", "answer", "entropy"]
    assert (one["prob_yes"], one["prob_no"], one["label"], one["answer"]) == ("0.25", "0.75", "no", "0")
    assert (other["prob_yes"], other["prob_no"], other["label"], other["answer"]) == ("0.75", "0.25", "yes", "")


def test_other_options_are_one_column_of_json(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.csv", UNLIKE, rows(UNLIKE))
    one, other = table(tmp_path / "a.csv")
    assert json.loads(one["probs"]) == {"yes": 0.25, "no": 0.75}
    assert json.loads(other["probs"]) == {"left, down": 0.25, "right": 0.75}
    assert other["label"] == "right"


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_answers(tmp_path / "a.parquet", ALIKE, rows(ALIKE))
    found = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row.pop("label") for row in found] == ["no", "yes"]
    assert found == rows(ALIKE)


@pytest.mark.parametrize("name", ["a", "a.json", "a.xls", "a.csv.gz"])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"answers are written as \.jsonl, \.csv, \.tsv, \.parquet or \.xlsx"):
        check_form(Path(name))


def test_parquet_needs_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    check_form(Path("a.parquet"))
    monkeypatch.setattr(answers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs pyarrow; run: pip install "abmll\[data\]"'):
        check_form(Path("a.parquet"))


@pytest.mark.parametrize("name", ["a.csv", "a.xlsx"])
def test_no_spreadsheet_takes_a_text_for_a_formula(tmp_path: Path, name: str) -> None:
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\tx", "a=b", "-1.5", "+3e-5", "", "1,000", "-"]
    write_table(tmp_path / name, [{"=text": text, "number": -0.5} for text in texts])
    found = (
        table(tmp_path / name) if name == "a.csv" else pandas.read_excel(tmp_path / name, dtype=str).to_dict("records")
    )
    wanted = [f"'{text}" if text in (*texts[:5], "-") else text for text in texts]
    assert [row["'=text"] for row in found if isinstance(row["'=text"], str)] == [
        text for text in wanted if text or name == "a.csv"
    ]
    assert {float(row["number"]) for row in found} == {-0.5}
