"""Users' tables: how they are read as they are, and which columns are taken for texts and labels."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abmll.common.errors import DataError
from abmll.tasks.columns import Columns, Table, find_columns, find_text, read_table
from abmll.tasks.rows import Row, read_rows


def table_of(**columns: list[Any]) -> Table:
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return Table("t.csv", tuple(columns), tuple(Row(f"t.csv:{n}", row) for n, row in enumerate(rows, 2)))


TEXTS = ["my card was charged", "the app has crashed", "please add a mode", "where is my invoice"]
LABELS = ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": TEXTS, "label": LABELS}, Columns("text", "label")),
        ({"Label ": LABELS, "TEXT": TEXTS}, Columns("TEXT", "Label ")),
        ({"input": TEXTS, "output": LABELS}, Columns("input", "output")),
        ({"id": [1, 2, 3, 4], "body": TEXTS, "category": LABELS}, Columns("body", "category")),
        ({"ticket": TEXTS, "team": LABELS}, Columns("ticket", "team")),  # by what stands in them
        ({"title": TEXTS, "text": TEXTS, "label": LABELS}, Columns("text", "label")),  # the more usual name
        ({"id": [1, 2, 3, 4], "said": TEXTS, "team": LABELS}, Columns("said", "team")),
    ],
)
def test_columns_are_guessed_where_one_choice_makes_sense(columns: dict[str, list[Any]], expected: Columns) -> None:
    assert find_columns(table_of(**columns)) == expected


@pytest.mark.parametrize(
    ("columns", "named", "fragment"),
    [
        ({"body": TEXTS, "message": TEXTS, "label": LABELS}, {}, "which column has the texts? Say --text NAME"),
        ({"text": TEXTS, "team": LABELS, "priority": LABELS}, {}, "which column has the labels? Say --label NAME"),
        ({"text": TEXTS, "team": LABELS}, {"label": "teams"}, "no column 'teams' (--label). Did you mean 'team'?"),
        ({"text": TEXTS, "team": LABELS}, {"text": "x"}, "Its columns are: text, team"),
        ({"text": TEXTS, "team": LABELS}, {"text": "text", "label": "text"}, "cannot be both text and label"),
    ],
)
def test_an_ambiguous_table_asks_for_names(columns: dict[str, list[Any]], named: dict[str, str], fragment: str) -> None:
    with pytest.raises(DataError) as caught:
        find_columns(table_of(**columns), **named)
    assert fragment in str(caught.value)


def test_named_columns_win_over_usual_names() -> None:
    table = table_of(text=TEXTS, label=LABELS, team=LABELS, body=TEXTS)
    assert find_columns(table, "body", "team") == Columns("body", "team")


def test_the_only_column_of_a_table_of_questions_has_the_texts() -> None:
    assert find_text(table_of(anything=["x"])) == "anything"
    assert find_text(table_of(anything=["x"], team=[""]), label="team") == "anything"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_may_be_separated_by_other_marks(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"text{mark}label\nx{mark}\n y {mark}a\n", encoding="utf-8")
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert [row.values for row in table.rows] == [{"text": "x", "label": ""}, {"text": " y ", "label": "a"}]
    assert table.values("label") == [None, "a"]
    assert table.where == str(path)
    assert table.rows[1].where == f"{path}:3"


def test_a_csv_may_begin_with_what_separates_its_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("SEP=;\r\ntext, whole;label\r\nx, y;a\r\n", encoding="utf-8-sig")
    [row] = read_table(path).rows
    assert (row.where, row.values) == (f"{path}:3", {"text, whole": "x, y", "label": "a"})
    path.write_text("sep=;\n", encoding="utf-8")
    with pytest.raises(DataError, match="the file is empty"):
        read_table(path)


def test_a_tsv_of_a_user_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("ticket\tteam\nx\ta\n", encoding="utf-8")
    assert read_table(path).columns == ("ticket", "team")


def test_standard_input_is_a_csv_or_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("text,label\nx,a\n", '{"text": "x", "label": "a"}\n'):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(text.encode()))))
        table = read_table(Path("-"))
        assert (table.where, table.rows[0].values) == ("<stdin>", {"text": "x", "label": "a"})


def test_excel_keeps_numbers_for_tables_and_makes_texts_of_them_for_tasks(tmp_path: Path) -> None:
    pandas, path = pytest.importorskip("pandas"), tmp_path / "t.xlsx"
    frame = pandas.DataFrame({"text": ["x", "y", None], "stars": [1.0, 2.0, None], "price": [1.5, 2, 3]})
    frame.to_excel(path, index=False)
    table = read_table(path)
    assert table.values("stars") == [1, 2, None]
    assert table.texts("stars") == ["1", "2", None]
    assert table.texts("price") == ["1.5", "2", "3"]
    assert read_rows(path)[0].values == {"text": "x", "stars": "1", "price": "1.5"}
    assert "stars" not in read_rows(path)[2].values


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("t.xlsx", b"no sheet", "not a readable Excel file"),
        ("t.xls", b"", "unknown kind of file; save it as .xlsx"),
        ("t.csv", b"text,label\n" + b"x" * 200_000 + b",a\n", "a cell has more than 131,072 characters; shorten it"),
        ("t.csv", b"text,label\n" + b"x" * 11_000_000 + b",a\n", "line longer than 10 MB"),
        ("t.csv", b"text,label\n", "the file is empty"),
        ("t.csv", b"text,text\nx,y\n", "two columns of the header have the same name"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, fragment: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert fragment in str(caught.value)


def test_where_the_cells_of_a_sheet_stand_costs_nothing(tmp_path: Path) -> None:
    openpyxl, path = pytest.importorskip("openpyxl"), tmp_path / "t.xlsx"
    book = openpyxl.Workbook()
    for place, value in {"A1": "text", "B1": "label", "A3": "x", "B3": "NA", "D900000": "=1/0"}.items():
        book.active[place] = value
    book.save(path)
    rows = read_table(path).rows  # 900,000 times 4 cells, all but five of them empty
    assert [(row.where, row.values) for row in rows] == [(f"{path}: row 3", {"text": "x", "label": "NA"})]


def test_a_sheet_that_claims_more_rows_than_there_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openpyxl, path = pytest.importorskip("openpyxl"), tmp_path / "t.xlsx"
    monkeypatch.setattr("abmll.tasks.file_limits.MAX_ROWS", 50)
    monkeypatch.setattr("abmll.tasks.excel.MAX_CELLS", 500)
    for place, words in (("A99", "51 rows; at most 50 are read"), ("XX9", "more than 500 cells up to here")):
        book = openpyxl.Workbook()
        book.active[place] = "far"
        book.save(path)
        with pytest.raises(DataError, match=words):
            read_table(path)


def test_excel_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r'pip install "abmll\[excel\]", or save it as CSV'):
        read_table(tmp_path / "t.xlsx")


def test_what_is_no_text_is_refused_with_its_place(write_rows: Callable[..., Path]) -> None:
    table = read_table(write_rows([{"text": "x", "label": ["a"]}]))
    with pytest.raises(DataError, match=r"task.jsonl:1: 'label' is a list, not a text"):
        table.texts("label")
    assert table.texts("text") == ["x"]
