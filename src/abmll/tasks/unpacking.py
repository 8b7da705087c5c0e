"""How much a compressed file may unpack to: a small one that holds gigabytes was not meant."""

from pathlib import Path

from abmll.common.errors import DataError

ANY = 100 * 10**6  # bytes that every file may unpack to
RATIO = 200  # and more in proportion to its own size; the dullest of BIG-bench's tasks reaches 58


class Unpacking:
    """Counts what a file has unpacked to."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.path, self.remedy = path, remedy
        self.most = max(ANY, RATIO * path.stat().st_size)
        self.size = 0

    def add(self, size: int) -> None:
        """So many bytes more. Raises ``DataError`` once they are too many."""
        self.size += size
        if self.size > self.most:
            raise DataError(
                f"{self.path}: unpacks to more than {self.most / 1e6:,.0f} MB, out of {self.path.stat().st_size:,} "
                f"bytes; {self.remedy}"
            )
