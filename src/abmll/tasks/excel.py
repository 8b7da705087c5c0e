"""The cells of an Excel file's first sheet, through pandas."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abmll.common.errors import DataError
from abmll.tasks.unpacking import Unpacking


def sheet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, and its cells by the name in the first line; None for an empty one.

    Raises ``DataError`` where pandas or openpyxl is missing, and for a file that they cannot read.
    """
    try:
        import openpyxl.utils.exceptions
        import pandas
    except ImportError as error:
        remedy = 'run: pip install "abmll[excel]", or save it as CSV'
        raise DataError(f"{path}: Excel files need pandas and openpyxl; {remedy}") from error
    unpacking = Unpacking(path, "save it again, or as CSV")
    try:
        with zipfile.ZipFile(path) as parts:
            unpacking.add(sum(part.file_size for part in parts.infolist()))
        frame = pandas.read_excel(path, dtype=object, engine="openpyxl")
    except (zipfile.BadZipFile, openpyxl.utils.exceptions.InvalidFileException, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable Excel file ({error}); save it again, or as CSV") from error
    names = [str(name).strip() for name in frame.columns]
    for number, cells in enumerate(frame.itertuples(index=False, name=None), start=2):
        yield number, {name: None if pandas.isna(cell) else cell for name, cell in zip(names, cells, strict=True)}


def as_text(value: Any) -> str:
    """A cell as a CSV would have it: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
