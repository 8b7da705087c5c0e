"""Examples in tokens, kept on the disk under a hash of all they depend on: made once, then read.

An entry is a safetensors file of two tensors: ``packed``, the examples one behind the other as ``Encoded`` holds them,
and ``ends``, where each of them ends. It is written example by example and read example by example, so that neither
needs memory for more than one. safetensors rather than Arrow: the project has it anyway, and a row of integers needs
no more. All entries lie in ``encoded/`` of the user's cache, may be deleted at any time, and are at most 2 GB
together: the longest unused ones go first.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO, overload
from weakref import finalize

import numpy as np
from safetensors import SafetensorError, safe_open

from abmll.common.errors import AbmllError, DataError
from abmll.common.files import atomic_file, cache_dir
from abmll.language.encoded import NUMBER, Encoded

FORMAT = "abmll-encoded-1"
MAX_BYTES = 2 * 10**9
MIN_EXAMPLES = 1000  # fewer are made again in less than a second, and held in less than a megabyte
HEADER_BYTES = 512  # safetensors allows spaces behind the JSON, which is written last
ENDS = np.dtype("<i8")
PIECE = 1 << 20


def encoded_dir() -> Path:
    """The folder of all entries."""
    return cache_dir() / "encoded"


def kept(
    key: Callable[[], str | None],
    encode: Callable[[], Iterable[Encoded]],
    count: int,
    folder: Path | None = None,
    min_examples: int = MIN_EXAMPLES,
    max_bytes: int = MAX_BYTES,
) -> Sequence[Encoded]:
    """What ``encode`` makes, ``count`` examples: read from the disk where it was made before, else made and kept.

    Args:
        key: makes a hash of everything that ``encode``'s result depends on; None: it cannot be kept.
        folder: where entries lie; by default ``encoded_dir()``.
        min_examples: fewer are made and held in memory. So are any that cannot be written to the disk.
        max_bytes: what all entries of the folder may take together.
    """
    name = key() if count >= min_examples else None
    if name is None:
        return list(encode())
    path = (folder or encoded_dir()) / f"{name}.safetensors"
    with suppress(OSError, ValueError, KeyError, SafetensorError):  # not there, or damaged: it is made again
        return EncodedFile(path)
    try:
        with atomic_file(path) as file:
            _write(file, encode(), count)
    except DataError:
        raise
    except AbmllError:  # the disk is full or may not be written to: this only saves time
        return list(encode())
    entry = EncodedFile(path)
    _drop_oldest(path.parent, max_bytes)
    return entry


def hash_of(parts: Iterable[object]) -> str:
    """SHA-256 in hexadecimal of these JSON-ready values, one behind the other, and of this file's format."""
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


class EncodedPairs(Mapping[tuple[int, int], Encoded]):
    """Examples in tokens by (task, index): ``drawn`` has the ascending indices of each task, ``rows`` all in order."""

    def __init__(self, drawn: Sequence[np.ndarray], rows: Sequence[Encoded]) -> None:
        self.rows = rows
        # One sorted array of numbers: a dictionary would take a hundred times as much.
        self._keys = np.array(
            [_pair_key(task, index) for task, some in enumerate(drawn) for index in some.tolist()], np.int64
        )

    def __getitem__(self, pair: tuple[int, int]) -> Encoded:
        key = _pair_key(*pair)
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            raise KeyError(pair)
        return self.rows[place]

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for key in self._keys.tolist():
            yield divmod(key, 1 << 32)


def _pair_key(task: int, index: int) -> int:
    return (task << 32) + index


class EncodedFile(Sequence[Encoded]):
    """The examples of an entry, each read when it is asked for; only their ends are held in memory.

    The file stays open, so that an entry which another process drops can still be read. Raises ``OSError``,
    ``ValueError``, ``KeyError`` or ``SafetensorError`` for a file that is not there or not as it was written.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="np") as tensors:
            self.ends: np.ndarray = tensors.get_tensor("ends")
            sha256 = tensors.metadata()["sha256"]
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (for as long as the object lives)
        finalize(self, self._file.close)
        self._lock = Lock()
        self._file.seek(HEADER_BYTES)
        digest = hashlib.sha256()
        while piece := self._file.read(PIECE):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{path}: damaged")
        with suppress(OSError):  # a read-only folder
            os.utime(path)  # used now

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        with self._lock:
            self._file.seek(HEADER_BYTES + start * NUMBER.itemsize)
            return Encoded.of(self._file.read((end - start) * NUMBER.itemsize))


def _write(file: BinaryIO, examples: Iterable[Encoded], count: int) -> None:
    """Write a safetensors file whose header, which says how much there is, gets its room first and is filled last."""
    file.write(bytes(HEADER_BYTES))
    digest, ends, end = hashlib.sha256(), np.zeros(count, ENDS), 0
    for index, example in enumerate(examples):
        file.write(example.packed)
        digest.update(example.packed)
        end += len(example.packed) // NUMBER.itemsize
        ends[index] = end
    file.write(ends.tobytes())
    digest.update(ends.tobytes())
    middle = end * NUMBER.itemsize
    header = {
        "__metadata__": {"format": FORMAT, "sha256": digest.hexdigest()},
        "packed": {"dtype": "I32", "shape": [end], "data_offsets": [0, middle]},
        "ends": {"dtype": "I64", "shape": [count], "data_offsets": [middle, middle + ends.nbytes]},
    }
    file.seek(0)
    file.write(struct.pack("<Q", HEADER_BYTES - 8) + json.dumps(header).encode().ljust(HEADER_BYTES - 8))


def _drop_oldest(folder: Path, max_bytes: int) -> None:
    """Delete the longest unused entries until the others take ``max_bytes`` at most."""
    with suppress(OSError):  # another process may be at the same, or hold an entry open where that forbids deletion
        entries = sorted(((file.stat().st_mtime, file) for file in folder.glob("*.safetensors")), reverse=True)
        total = 0
        for _, file in entries:
            total += file.stat().st_size
            if total > max_bytes:
                file.unlink()
