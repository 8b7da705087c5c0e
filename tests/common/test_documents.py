"""JSON documents and lines: what is read back, and what is refused in one line."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from abmll.common.documents import (
    FORMATS,
    MAX_BYTES,
    OF_VERSION_0_1,
    is_of,
    read_json,
    read_json_lines,
    write_document,
    write_json_lines,
)
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


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.common.documents.MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b" " * (2 << 20) + b"\n")
    with pytest.raises(CheckpointError, match=rf"^{path}:2: line longer than 1 MiB; remove it$"):
        list(read_json_lines(path, "remove it"))


def test_what_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_lines(tmp_path / "rows.jsonl", [{"a": float("nan")}])
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"size": {"max_steps": 6}}, "does not match its sha256, so it was changed after it was written"),
        ({"sha256": None}, "does not match its sha256"),
        ({"sha256": "0"}, r"is damaged \(sha256: String should match"),
        ({"more": 1}, r"is damaged \(more: Extra inputs are not permitted\)"),
        ({"size": {"max_steps": -1}}, r"is damaged \(size\.max_steps: Input should be greater than or equal to 0\)"),
        ({"size": {"max_steps": "5"}}, r"is damaged \(size\.max_steps: Input should be a valid integer\)"),
        ({"size": {"max_steps": True}}, r"is damaged \(size\.max_steps: Input should be a valid integer\)"),
        ({"size": {"max_steps": 5.0}}, r"is damaged \(size\.max_steps: Input should be a valid integer\)"),
        ({"size": None}, r"is damaged \(size: Input should be an object\)"),
    ],
)
def test_a_changed_document_is_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = tmp_path / "size.json"
    write_document(path, "size", SIZE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"size\.json: {problem}.*; measure again$"):
        read_json(path, "size", "measure again")


def test_order_of_keys_and_spaces_are_no_change(tmp_path: Path) -> None:
    path = tmp_path / "size.json"
    write_document(path, "size", SIZE)
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert read_json(path, "size", "measure again") == {"format": FORMATS["size"], **SIZE}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    places = [
        (tmp_path / "pipe", "is not a regular"),
        (Path("/dev/zero"), "is not a regular"),
        (tmp_path / "folder", "cannot be read"),
    ]
    for path, problem in places:
        for read in (lambda path: read_json(path, "size", "measure again"), lines_of):
            with pytest.raises(CheckpointError, match=f"{problem}.*; measure again$"):
                read(path)
        assert is_of(path, "size")  # so that its reader is called, and says it


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_document(folder / "size.json", "size", SIZE)
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n')
    (folder / "same.json").symlink_to("size.json")
    (folder / "lines.jsonl").symlink_to(tmp_path / "lines.jsonl")
    (tmp_path / "out.json").symlink_to("folder/size.json")
    (folder / "out.json").symlink_to(tmp_path / "out.json")  # and back again: what is read is in the folder
    (tmp_path / "size.json").write_bytes((folder / "size.json").read_bytes())
    (folder / "other.json").symlink_to(tmp_path / "size.json")
    (tmp_path / "whole").symlink_to(folder)
    for name in ("same.json", "out.json"):
        assert read_json(tmp_path / "whole" / name, "size", "measure again")["size"] == SIZE["size"]
    with pytest.raises(CheckpointError, match=r"other\.json: is a link that leads out of its folder; measure again$"):
        read_json(folder / "other.json", "size", "measure again")
    with pytest.raises(CheckpointError, match=r"lines\.jsonl: is a link that leads out of its folder; measure again$"):
        lines_of(folder / "lines.jsonl")


def lines_of(path: Path) -> list[object]:
    return list(read_json_lines(path, "measure again"))


def test_a_file_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"has 268,435,457 bytes, more than the 268,435,456 that it may"):
        read_json(tmp_path / "large", "size", "measure again")


KINDS = {FORMATS[kind]: kind for kind in ("cell", "comparison", "settings")}


def test_every_published_result_is_as_its_schema_says() -> None:
    found = Counter[str]()
    for path in (Path(__file__).parents[2] / "results").rglob("*.json"):
        if kind := KINDS.get(json.loads(path.read_bytes()).get("format")):
            read_json(path, kind, "publish it again")
            found[kind] += 1
    assert found["cell"] > 100
    assert set(found) == set(KINDS.values())
