"""JSON documents and lines: what is read back, and what is refused in one line."""

from pathlib import Path

import pytest

from abmll.common.documents import FORMATS, OF_VERSION_0_1, read_json, read_json_lines, write_document, write_json_lines
from abmll.common.errors import CheckpointError, DataError
from abmll.common.files import write_json

SIZE = {"given": {}, "size": {"max_steps": 5}}


def test_a_document_of_its_format_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "size.json"
    write_document(path, "size", SIZE)
    assert read_json(path, "size", "measure again") == {"format": FORMATS["size"], **SIZE}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not of the format 'abmll-cell-2'"),
        ('{"format": "other"}', "is not of the format 'abmll-cell-2'"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "cell.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"^{path}: {problem}.*; compute it again$") as refused:
        read_json(path, "cell", "compute it again", DataError)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("old", OF_VERSION_0_1)
def test_what_version_0_1_wrote_is_named_as_such(tmp_path: Path, old: str) -> None:
    write_json(tmp_path / "state.json", {"format": old})
    with pytest.raises(
        CheckpointError, match=r"was written by abmll 0\.1, which this version does not read; train again$"
    ):
        read_json(tmp_path / "state.json", "checkpoint", "train again")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "none.json", "size", "write it")


def test_lines_come_back_without_one_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_json_lines(path, [{"a": 1}, {"a": "é\u2028"}])
    with path.open("ab") as file:
        file.write(b'\n{"a": 3')
    assert list(read_json_lines(path, "remove it")) == [(1, {"a": 1}), (2, {"a": "é\u2028"})]
    assert list(read_json_lines(tmp_path / "none.jsonl", "remove it")) == []


@pytest.mark.parametrize(("line", "problem"), [("{", "is not valid JSON"), ("3", "is int, not a JSON object")])
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"^{path}:2: {problem}.*; remove it$"):
        list(read_json_lines(path, "remove it"))


def test_what_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_lines(tmp_path / "rows.jsonl", [{"a": float("nan")}])
    assert not (tmp_path / "rows.jsonl").exists()
