"""The rows of a JSONL, JSON, CSV, TSV or Parquet file as dictionaries, each with the place where it stands.

Nothing is known here of what a row means; what is checked is that the file can be read at all, in bounded memory.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from abmll.common.errors import DataError, nearest

MAX_LINE_BYTES = 10 * 10**6
MAX_JSON_BYTES = 200 * 10**6
TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")
CELLS_ARE_TEXT = (".csv", ".tsv")  # formats that cannot tell the number 1 from the text "1"


class Row(NamedTuple):
    """``where`` is "file:line" for messages; ``values`` maps the row's keys (or columns) to what it holds."""

    where: str
    values: dict[str, Any]


def suffix_of(path: Path) -> str:
    """The known suffix that the file name ends with, such as ".jsonl.gz", or an empty string."""
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The file name without its known suffix."""
    return path.name.removesuffix(suffix_of(path))


def read_rows(path: Path) -> list[Row]:
    """All rows of a file.

    Raises:
        DataError: missing, empty, of an unknown kind, or unreadable at the line that the text names.
    """
    if not path.is_file():
        if path.is_dir():
            raise DataError(f"{path}: is a folder; give one file of it")
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file.{nearest(path.name, siblings)}")
    suffix = suffix_of(path)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_tsv}
    if not suffix:
        raise DataError(f"{path}: unknown kind of file; use one of {', '.join(SUFFIXES)}")
    try:
        read = _read_parquet if suffix == ".parquet" else readers[suffix.removesuffix(".gz")]
        rows = list(read(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); compress it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{path}: the file is empty; it needs at least one row")
    return rows


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line, decoded, in memory that one line bounds. A UTF-8 byte-order mark is dropped."""
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"{path}:{number}: line longer than {MAX_LINE_BYTES // 10**6} MB; shorten or split it")
            yield number, _decode(raw, path, number)


def _decode(raw: bytes, path: Path, number: int) -> str:
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: the file is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; save the whole file as UTF-8"
        ) from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_STRICT = json.JSONDecoder(parse_constant=_no_constant)


def _parse(text: str, path: Path, line: int) -> Any:
    """The JSON value of a text that begins at that line of the file."""
    try:
        return _STRICT.decode(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        problem = f"{error.msg} at column {error.colno}"
        raise DataError(f"{place}: malformed JSON ({problem}); correct or remove it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{line}: malformed JSON ({error}); correct or remove it") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected an object such as {{"input": ..., "options": [...], "answer": ...}}')
    return Row(where, value)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            # Without its end: a value that breaks off there would be missed on the next line.
            yield _object(_parse(line.rstrip(), path, number), f"{path}:{number}")


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(f"{path}: larger than {MAX_JSON_BYTES // 10**6} MB; use JSONL, which is read line by line")
    if not raw.strip():
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; save the whole file as UTF-8") from error
    values = _parse(text, path, 1)
    if not isinstance(values, list):
        raise DataError(f"{path}: expected a list of objects")
    for index, value in enumerate(values):
        yield _object(value, f"{path}: item {index}")


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Iterator[Row]:
    """A TSV with a header, or CrossFit's: no header, no quoting, every line ``input<TAB>output``."""
    first = next((line for _, line in _lines(path)), "")
    if "input" in [cell.strip() for cell in first.split("\t")]:
        yield from _read_table(path, "\t")
        return
    for number, line in _lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(cells) != 2:
            raise DataError(
                f"{path}:{number}: {len(cells)} columns; without a header that has 'input', a line is input<TAB>output"
            )
        yield Row(f"{path}:{number}", {"input": cells[0], "output": cells[1]})


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows under a header line; empty cells count as absent."""
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise DataError(f"{where}: two columns of the header have the same name; rename one")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells under {len(header)} columns; quote cells that hold commas"
                )
            yield Row(where, {key: cell for key, cell in zip(header, cells, strict=True) if cell.strip()})
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: malformed table ({error}); check the quotes") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f'{path}: reading Parquet needs pyarrow; run: pip install "abmll[data]"') from error
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
