"""The cells of an Excel file's first sheet, in memory that the cells bound, and not the places where they stand."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from abmll.common.errors import AbmllError, DataError
from abmll.tasks.file_limits import MAX_CELLS, Unpacking, check_header, refuse_long

_REMEDY = "save it again, or as CSV"


def sheet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row that is not empty, and its cells by the name in the first of them; None for an empty one.

    Raises ``DataError`` where openpyxl is missing, and for a file that it cannot read, or that holds too much.
    """
    try:
        import openpyxl
    except ImportError as error:
        remedy = 'run: pip install "abmll[excel]", or save it as CSV'
        raise DataError(f"{path}: Excel files need openpyxl; {remedy}") from error
    try:
        with zipfile.ZipFile(path) as parts:
            Unpacking(path, _REMEDY).add(sum(part.file_size for part in parts.infolist()))
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        first = book.worksheets[0]
        first.reset_dimensions()  # which a file may claim as it likes
        yield from _named(first.iter_rows(), path)
        book.close()
    except (AbmllError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever damage inside of the file leads openpyxl to
        raise DataError(f"{path}: not a readable Excel file ({error}); {_REMEDY}") from error


def _named(rows: Iterator[Sequence[Any]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    names: list[str] = []
    seen = 0
    for number, row in enumerate(rows, start=1):
        refuse_long(number, str(path))
        seen += len(row)
        if seen > MAX_CELLS:
            raise DataError(f"{path}: row {number}: more than {MAX_CELLS:,} cells up to here; {_REMEDY}")
        cells = [_value(cell) for cell in row]
        while cells and cells[-1] is None:
            cells.pop()
        if not cells:
            continue
        if not names:
            names = ["" if cell is None else as_text(cell).strip() for cell in cells]
            names = [name or f"Unnamed: {index}" for index, name in enumerate(names)]  # as pandas calls it
            check_header(names, f"{path}: row {number}")
            continue
        cells += [None] * (len(names) - len(cells))
        beside = {f"Unnamed: {index}": cells[index] for index in range(len(names), len(cells))}
        yield number, dict(zip(names, cells, strict=False)) | beside


def _value(cell: Any) -> Any:
    """A cell's value: whole numbers as such, None for an empty cell and for an error such as #DIV/0!."""
    value = cell.value
    if cell.data_type == "e" or value == "":
        return None
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return int(value) if is_whole else value


def as_text(value: Any) -> str:
    """A cell as a CSV would have it: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
