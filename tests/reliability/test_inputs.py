"""Task files and tables that nobody meant: read, or refused in one line that names the file."""

import csv
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from abmll.cli.labelling import read_labelled
from abmll.cli.main import entry
from abmll.common.config import TableConfig
from abmll.common.errors import AbmllError
from abmll.tasks.columns import read_table

SEED = int(os.environ.get("ABMLL_SEED", "0"))
TEXTS = st.sampled_from(
    ["", " ", "a", "yes", "no", "é", "\u202e", "a\tb", "a\nb", '"', "'", ",", "=1", "x" * 9000, "\ufeff"]
)
PLAIN = st.none() | st.booleans() | st.integers(-3, 300) | st.sampled_from([10**30, 1e308, -0.0, 0.5]) | TEXTS
VALUES = PLAIN | st.lists(PLAIN, max_size=4) | st.dictionaries(TEXTS, PLAIN, max_size=2)
KEYS = st.sampled_from(["input", "options", "answer", "output", "id", "split", "text", "label", "task", "Input", ""])
GOOD = {"input": "a", "options": ["yes", "no"], "answer": "no", "text": "a", "label": "yes"}
SUFFIXES = [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".parquet", ".xlsx", ".txt", ""]


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """JSON lines, most of them good, some with one wrong value, some no JSON."""
    rows = []
    for number in range(draw(st.integers(0, 6))):
        row: dict[str, Any] = {**GOOD, "input": f"question {number}", "text": f"text {number}"}
        if draw(st.booleans()):
            row[draw(KEYS)] = draw(VALUES)
        if draw(st.integers(0, 3)) == 0:
            row.pop(draw(st.sampled_from(sorted(row))))
        rows.append(json.dumps(row, ensure_ascii=draw(st.booleans())))
    raw = draw(st.sampled_from(["\n", "\r\n", "\n\n", ","])).join(rows).encode("utf-8", "surrogatepass")
    return draw(
        st.sampled_from([raw, raw + b"\n", b"[" + raw + b"]", b"\xef\xbb\xbf" + raw, raw.replace(b"a", b"\xff")])
    )


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A CSV or TSV with a header of odd names and rows of odd cells."""
    buffer, mark = io.StringIO(), draw(st.sampled_from([",", ";", "\t"]))
    writer = csv.writer(buffer, delimiter=mark)
    header = draw(st.lists(KEYS, max_size=5))
    writer.writerow(header)
    for number in range(draw(st.integers(0, 8))):
        width = len(header) + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
        writer.writerow([draw(TEXTS) if draw(st.booleans()) else f"cell {number % 3}" for _ in range(max(width, 0))])
    text = buffer.getvalue()
    return draw(
        st.sampled_from([text.encode(), text.encode("utf-16"), text.encode() + b'"', text.encode("latin-1", "replace")])
    )


@st.composite
def parquets(draw: st.DrawFn) -> bytes:
    """A Parquet file with texts of any bytes, dates of any year, and bytes changed in it."""
    size = draw(st.integers(1, 5))
    parts = [draw(st.binary(max_size=6) | st.just(b"a text")) for _ in range(size)]
    ends = [sum(map(len, parts[:n])) for n in range(size + 1)]
    buffers = [b"".join(end.to_bytes(4, "little") for end in ends), b"".join(parts)]
    texts = pyarrow.Array.from_buffers(pyarrow.utf8(), size, [None, *map(pyarrow.py_buffer, buffers)])
    days = pyarrow.array([draw(st.integers(-(2**31), 2**31 - 1)) for _ in range(size)], pyarrow.date32())
    labels = days if draw(st.booleans()) else pyarrow.array([draw(st.sampled_from("ab")) for _ in range(size)])
    names = draw(st.sampled_from([["text", "label"], ["input", "output"], ["input", "input"]]))
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([texts, labels], names), sink)
    raw = bytearray(sink.getvalue())
    for place in draw(st.lists(st.integers(0, len(raw) - 1), max_size=2)):
        raw[place] ^= draw(st.integers(0, 255))
    return bytes(raw)


def workbook() -> dict[str, bytes]:
    """The parts of a small sheet."""
    book, sink = openpyxl.Workbook(), io.BytesIO()
    sheet = book.worksheets[0]
    for row in (["text", "label", "input", "options", "answer"], ["a", "yes", 1.0, '["yes", "no"]', 0], ["=1/0", "no"]):
        sheet.append(row)
    book.save(sink)
    with zipfile.ZipFile(sink) as parts:
        return {part.filename: parts.read(part) for part in parts.infolist()}


WORKBOOK = workbook()


@st.composite
def sheets(draw: st.DrawFn) -> bytes:
    """An Excel file with a part changed or left out, and perhaps bytes of the file itself."""
    parts = dict(WORKBOOK)
    name = draw(st.sampled_from(sorted(parts)))
    old = draw(st.sampled_from([b"B2", b"A1", b"row r=", b'"s"', b'"n"', b"<v>", b"</c>", b"sheet1", b"<si>", b"="]))
    new = draw(
        st.sampled_from([b"XFD1048576", b"A0", b"", b'"e"', b'"d"', b"<v>1e999", b"<", b"sheet9", b"&a;", b"\xff"])
    )
    parts[name] = parts[name].replace(old, new, draw(st.integers(1, 3)))
    if draw(st.integers(0, 4)) == 0:
        del parts[draw(st.sampled_from(sorted(parts)))]
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        for part, content in parts.items():
            file.writestr(part, content)
    raw = bytearray(sink.getvalue())
    for place in draw(st.lists(st.integers(0, len(raw) - 1), max_size=2)) if draw(st.booleans()) else ():
        raw[place] ^= draw(st.integers(0, 255))
    return bytes(raw)


CONTENTS = lines() | tables() | st.binary(max_size=60) | st.sampled_from(
    [
        b"[" * 5000, b'{"a":' * 3000, b"\0" * 100, b"PK\x03\x04", b"PAR1", b"PAR1" * 3, b"\x1f\x8b", 
        b'{"input": 1e999}',
        b"NaN",
    ]
)  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from(SUFFIXES))
    own = {".parquet": parquets(), ".xlsx": sheets()}.get(suffix)
    content = draw(CONTENTS if own is None else own | CONTENTS)
    if suffix.endswith(".gz") and draw(st.booleans()):
        content = gzip.compress(content)
        content = content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 3)) == 0 else content
    return f"bad{suffix}", content


def test_any_file_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tries: Callable[[int], int]
) -> None:
    monkeypatch.chdir(tmp_path)

    @seed(SEED)
    @settings(max_examples=tries(500))
    @given(files())
    def check(file: tuple[str, bytes]) -> None:
        name, content = file
        Path(name).write_bytes(content)
        capfd.readouterr()
        code = entry(["tasks", "validate", name])
        _, err = capfd.readouterr()
        assert code in (0, 2)
        assert "Traceback" not in err
        if code == 2:
            assert err.splitlines()[-1].startswith("abmll: error: ")
            assert name in err

    check()


def test_any_table(tmp_path: Path, tries: Callable[[int], int]) -> None:
    @seed(SEED)
    @settings(max_examples=tries(500))
    @given(files(), st.booleans(), st.sampled_from([None, "label", "answer", "x"]))
    def check(file: tuple[str, bytes], is_multi_label: bool, label: str | None) -> None:
        name, content = file
        path = tmp_path / name
        path.write_bytes(content)
        try:
            task = read_labelled(
                read_table(path), TableConfig(label=label, multi_label=is_multi_label), lambda line: None
            )
            assert all(len(example.options) >= 2 for example in task.rows.examples())
        except AbmllError as error:
            lines = str(error).splitlines()
        else:
            lines = ["read"]
        assert len(lines) == 1

    check()
