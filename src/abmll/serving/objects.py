"""Files of tensors by name: in a folder of this machine, or wherever fsspec reaches (``s3://``, ``gs://``, ...)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from abmll.common.errors import AbmllError, CheckpointError
from abmll.common.files import FULL, atomic_file, disk_errors, read_regular, remove
from abmll.serving.storage_errors import StorageError, StorageFull

LONGEST_WRITE = 3600.0  # seconds that a file takes at most
LARGEST = 4 << 30  # bytes of a file


class Objects:
    """Whole files below one place. Names are made by the server, of numbers alone.

    Raises ``AbmllError`` where the place's kind is not known here.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        try:
            self.system, self.root = fsspec.core.url_to_fs(place)
        except (ImportError, ValueError) as error:
            raise AbmllError(f"{place}: files cannot be kept there: {error}") from error
        self.is_local = isinstance(self.system, LocalFileSystem)

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, on the disk before the call returns.

        Raises ``StorageFull``, and ``StorageError`` for what else the place refuses.
        """
        if self.is_local:
            with _storing(), atomic_file(self._path(name)) as file:
                file.write(data)
            return _clear(self._path(name).parent)
        with _storing(), disk_errors(f"{self.place}/{name}"):
            self.system.pipe_file(f"{self.root}/{name}", data)

    def get(self, name: str) -> bytes | None:
        """A file's bytes; None where there is none. Raises ``CheckpointError`` for one that cannot be read."""
        if self.is_local:
            path = self._path(name)
            return read_regular(path, LARGEST, "learn the task again", CheckpointError) if path.exists() else None
        try:
            return self.system.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{self.place}/{name}: cannot be read ({error})") from error

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, without its own; none where it is not there."""
        with disk_errors(f"{self.place}/{folder}"), suppress(FileNotFoundError):
            return [path.rsplit("/", 1)[-1] for path in self.system.ls(f"{self.root}/{folder}", detail=False)]
        return []

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all its files; nothing happens where there is none."""
        if self.is_local:
            return remove(self._path(name))
        with disk_errors(f"{self.place}/{name}"), suppress(FileNotFoundError):
            self.system.rm(f"{self.root}/{name}", recursive=True)

    def _path(self, name: str) -> Path:
        return Path(self.root) / name


def _clear(folder: Path) -> None:
    """Delete what processes that were killed while they wrote have left; what is younger may still be written."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - LONGEST_WRITE:
                remove(path)


@contextmanager
def _storing() -> Iterator[None]:
    """Tell a disk that is full from whatever else is wrong with it."""
    try:
        yield
    except AbmllError as error:
        kind = StorageFull if getattr(error.__cause__, "errno", None) in FULL else StorageError
        raise kind(str(error)) from error
