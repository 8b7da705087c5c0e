"""The rows of a JSONL, JSON, CSV, TSV, Parquet or Excel file as dictionaries, each with the place where it stands.

Nothing is known here of what a row means, only whether it can be read at all, in bounded memory.
"""

import csv
import gzip
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from abmll.common.errors import DataError, nearest
from abmll.common.strict_json import parse_json
from abmll.tasks.excel import as_text, sheet
from abmll.tasks.file_limits import MAX_JSON_BYTES, MAX_LINE_BYTES, Unpacking, check_header
from abmll.tasks.parquet import parquet_rows

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet", ".xlsx")
SEPARATOR = re.compile(r"sep=([,;|\t])", re.IGNORECASE)  # a first line that Excel writes and reads
STDIN = Path("<stdin>")  # what "-" is called in messages


class Row(NamedTuple):
    """``where`` is "file:line" for messages; ``values`` maps the row's keys (or columns) to what it holds."""

    where: str
    values: dict[str, Any]


def suffix_of(path: Path) -> str:
    """The known suffix that the file name ends with, such as ".jsonl.gz", or an empty string."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The file name without its known suffix."""
    return path.name.removesuffix(suffix_of(path))


def is_table(path: Path) -> bool:
    """Whether the file is a CSV, TSV or Excel sheet, in which a list is written as text, and so may a number be."""
    return suffix_of(path).removesuffix(".gz") in (".csv", ".tsv", ".xlsx")


def read_rows(path: Path, as_it_is: bool = False, has_header: bool = False) -> list[Row]:
    """All rows of a file. Arguments and errors are those of ``iterate_rows``."""
    return list(iterate_rows(path, as_it_is, has_header))


def iterate_rows(path: Path, as_it_is: bool = False, has_header: bool = False) -> Iterator[Row]:
    """One row of a file after the other, or of standard input where ``path`` is "-": JSON lines or a CSV.

    With ``as_it_is`` a CSV, TSV or Excel sheet keeps its empty cells and numbers, and its first line is always a
    header. Otherwise all cells are texts, empty ones count as absent, and a TSV is CrossFit's, unless its first line
    has ``input``, or ``text`` and ``label``, or ``has_header`` says that it names the columns.

    Raises:
        DataError: missing, empty, of an unknown kind, or unreadable at the line that the text names.
    """
    if path == Path("-"):
        path = STDIN
    elif path.is_dir():
        raise DataError(f"{path}: is a folder; give one file of it")
    elif path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or a device; give a file, or - for standard input")
    elif not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file.{nearest(path.name, siblings)}")
    empty = True
    try:
        for row in _reader(path, as_it_is, has_header)(path):
            yield row
            empty = False
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); compress it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if empty:
        below = " under its header" if is_table(path) else ""
        raise DataError(f"{path}: the file is empty; it needs at least one row{below}")


def as_texts(rows: Iterable[Row]) -> list[Row]:
    """The rows of a CSV, TSV or Excel sheet that were read as they are, as they are read otherwise."""
    texts = ((row.where, {key: as_text(cell) for key, cell in row.values.items() if cell is not None}) for row in rows)
    return [_cells(where, list(cells), list(cells.values())) for where, cells in texts]


def _reader(path: Path, as_it_is: bool, has_header: bool) -> Callable[[Path], Iterator[Row]]:
    """What reads this kind of file."""
    table = partial(_read_table, as_it_is=as_it_is)
    if path == STDIN:
        return _read_jsonl if sys.stdin.buffer.peek(1)[:1] == b"{" else table  # pyright: ignore[reportAttributeAccessIssue]
    readers = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": table,
        ".tsv": partial(_read_table, delimiter="\t", as_it_is=True)
        if as_it_is
        else partial(_read_tsv, has_header=has_header),
        ".parquet": _read_parquet,
        ".xlsx": partial(_read_excel, as_it_is=as_it_is),
    }
    read = readers.get(suffix_of(path).removesuffix(".gz"))
    if read is None:
        hint = "save it as .xlsx, or " if path.suffix in (".xls", ".ods") else ""
        raise DataError(f"{path}: unknown kind of file; {hint}use one of {', '.join(SUFFIXES)}")
    return read


class _Open(NamedTuple):
    file: BinaryIO | gzip.GzipFile
    unpacking: Unpacking | None  # what counts the bytes of a compressed file


@contextmanager
def _open(path: Path) -> Iterator[_Open]:
    if path == STDIN:
        yield _Open(sys.stdin.buffer, None)
        return
    with open(path, "rb") as file:
        if path.suffix != ".gz":
            yield _Open(file, None)
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield _Open(unpacked, Unpacking(path, "where that is meant, unpack it first", file.tell))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line, in memory that one line bounds. A UTF-8 byte-order mark is dropped."""
    with _open(path) as (file, counted):
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if counted is not None:
                counted.add(len(raw))
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"{path}:{number}: line longer than {MAX_LINE_BYTES // 10**6} MB; shorten or split it")
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{path}:1: the file is UTF-16; save it as UTF-8")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                place = f"byte {error.start + 1} of the line is not UTF-8"
                raise DataError(f"{path}:{number}: {place}; save the whole file as UTF-8") from error


def _parse(text: str, path: Path, line: int) -> Any:
    """The JSON value of a text that begins at that line of the file."""
    try:
        return parse_json(text)
    except ValueError as error:
        problem = str(error)
        if isinstance(error, JSONDecodeError):
            line, problem = line + error.lineno - 1, f"{error.msg} at column {error.colno}"
        raise DataError(f"{path}:{line}: malformed JSON ({problem}); correct or remove it") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected an object such as {{"input": ..., "options": [...], "answer": ...}}')
    return Row(where, value)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            # Without the line's end: the error of a value that breaks off there would name the next line.
            yield _object(_parse(line.rstrip(), path, number), f"{path}:{number}")


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as (file, counted):
        raw = file.read(MAX_JSON_BYTES + 1)
        if counted is not None:
            counted.add(len(raw))
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(f"{path}: larger than {MAX_JSON_BYTES // 10**6} MB; use JSONL, which is read line by line")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; save the whole file as UTF-8") from error
    values = _parse(text, path, 1) if text.strip() else []
    if not isinstance(values, list):
        raise DataError(f"{path}: expected a list of objects")
    for index, value in enumerate(values):
        yield _object(value, f"{path}: item {index}")


def _read_tsv(path: Path, has_header: bool) -> Iterator[Row]:
    """A TSV with a header, or CrossFit's: no header, no quoting, every line ``input<TAB>output``."""
    first = next((line for _, line in _lines(path)), "")
    names = {cell.strip() for cell in first.split("\t")}
    if has_header or "input" in names or names >= {"text", "label"}:
        yield from _read_table(path, delimiter="\t")
        return
    for number, line in _lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(cells) != 2:
            raise DataError(
                f"{path}:{number}: {len(cells)} columns; without a header that has 'input', a line is input<TAB>output"
            )
        yield _cells(f"{path}:{number}", ["input", "output"], cells)


def _read_table(path: Path, delimiter: str | None = None, as_it_is: bool = False) -> Iterator[Row]:
    """Rows under a header line; a CSV whose header has no comma but semicolons or tabs is separated by these.

    Excel's first line, such as ``sep=;``, says what separates the cells.
    """
    lines = (line for _, line in _lines(path))
    first, before = next(lines, ""), 0
    if named := SEPARATOR.fullmatch(first.rstrip("\r\n")):
        delimiter, first, before = named[1], next(lines, ""), 1
    if delimiter is None:
        delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{path}:{before + reader.line_num}"
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                check_header(header, where)
                continue
            if len(cells) != len(header):
                remedy = "add those that are missing" if len(cells) < len(header) else "quote cells that hold commas"
                raise DataError(f"{where}: {len(cells)} cells under {len(header)} columns; {remedy}")
            yield Row(where, dict(zip(header, cells, strict=True))) if as_it_is else _cells(where, header, cells)
    except csv.Error as error:
        if "field limit" in str(error):
            limit = f"{csv.field_size_limit():,} characters"
            raise DataError(f"{path}:{before + reader.line_num}: a cell has more than {limit}; shorten it") from error
        raise DataError(f"{path}:{before + reader.line_num}: malformed table ({error}); check the quotes") from error


def _cells(where: str, header: list[str], cells: list[str]) -> Row:
    """A table's row. Empty cells count as absent; so do blank ones, but for an input, where they are a mistake."""
    pairs = zip(header, cells, strict=True)
    return Row(where, {key: cell for key, cell in pairs if cell.strip() or (cell and key == "input")})


def _read_parquet(path: Path) -> Iterator[Row]:
    for number, values in parquet_rows(path):
        yield Row(f"{path}: row {number}", values)


def _read_excel(path: Path, as_it_is: bool) -> Iterator[Row]:
    """The first sheet, under its first line."""
    for number, cells in sheet(path):
        where = f"{path}: row {number}"
        texts = {name: as_text(cell) for name, cell in cells.items() if cell is not None}
        yield Row(where, cells) if as_it_is else _cells(where, list(texts), list(texts.values()))
