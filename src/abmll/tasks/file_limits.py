"""How much one file of rows may hold: a small one that holds gigabytes was not meant, and nothing else is unbounded."""

from collections.abc import Callable, Collection
from pathlib import Path

from abmll.common.errors import DataError

MAX_LINE_BYTES = 10 * 10**6
MAX_JSON_BYTES = 200 * 10**6
MAX_COLUMNS = 10_000
MAX_ROWS = 10 * 10**6  # of Parquet and Excel, whose files of a few bytes can claim any number
MAX_CELLS = 50 * 10**6  # of a sheet, the empty ones between others too
ANY = 25 * 10**6  # bytes that every compressed file may unpack to; short rows take 40 times as many in memory
ANY_PARQUET = 200 * 10**6  # which keeps a text once that stands in every row
RATIO = 100  # and more in proportion to what was read of it; the dullest of BIG-bench's tasks reaches 58
TOTAL = 20 * 10**9


class Unpacking:
    """Counts what a file has unpacked to: at most ``least`` bytes, and more for a large one.

    ``position`` tells how much of the file has been read, so that a dull part of it is noticed at once; without it the
    whole file counts.
    """

    def __init__(self, path: Path, remedy: str, position: Callable[[], int] | None = None, least: int = ANY) -> None:
        self.path, self.remedy, self.least = path, remedy, least
        self._position = position or (lambda: path.stat().st_size)
        self.size = 0

    def add(self, size: int) -> None:
        """So many bytes more. Raises ``DataError`` once they are too many."""
        self.size += size
        if self.size <= self.least:
            return
        read = self._position()
        most = min(self.least + RATIO * read, TOTAL)
        if self.size > most:
            raise DataError(
                f"{self.path}: unpacks to more than {most / 1e6:,.0f} MB, out of {read:,} bytes; {self.remedy}"
            )


def check_header(names: Collection[str], where: str) -> None:
    """Raise ``DataError`` for more columns than a table may have, or two of one name."""
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{where}: {len(names):,} columns; at most {MAX_COLUMNS:,} are read. Leave some out")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: two columns of the header have the same name; rename one")


def refuse_long(rows: int, where: str) -> None:
    """Raise ``DataError`` for more rows than a Parquet file or a sheet may have."""
    if rows > MAX_ROWS:
        raise DataError(f"{where}: has {rows:,} rows; at most {MAX_ROWS:,} are read. Take a part of it")
