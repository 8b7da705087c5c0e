"""A temporary file for what does not fit into memory: blocks of bytes, found again by where they begin."""

import os
import tempfile
import weakref
from threading import Lock

from abmll.common.errors import DataError


class Spool:
    """An unnamed file that is gone when nobody needs it any more; several threads may read it at once."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="abmll-")  # noqa: SIM115 (it lives as long as this object)
        self._lock = Lock()
        self.size = 0
        weakref.finalize(self, self._file.close)

    def append(self, block: bytes) -> int:
        """Write a block; returns where it begins. Raises ``DataError`` where the disk has no room for it."""
        with self._lock:
            begin = self.size
            try:
                self._file.seek(begin)
                self._file.write(block)
                self._file.flush()
            except OSError as error:
                raise DataError(
                    f"{tempfile.gettempdir()}: no room for the examples that do not fit into memory "
                    f"({error.strerror or error}); let TMPDIR name a folder on a larger disk"
                ) from error
            self.size += len(block)
        return begin

    def read(self, begin: int, size: int) -> bytes:
        """``size`` bytes from ``begin`` on."""
        with self._lock:
            self._file.seek(begin, os.SEEK_SET)
            return self._file.read(size)
