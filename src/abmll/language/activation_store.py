"""Rows of activations on disk: found by a hash of what was read, in a folder named after what read it.

Rows lie in shards, safetensors files that are mapped into memory: what several processes read is in memory once. A
shard is written under a name of its own, whole or not at all, and never changed, so that any number of processes may
share a folder. A shard that is damaged is deleted, and its rows are computed again.
"""

import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from abmll.common.errors import AbmllError
from abmll.common.files import write_bytes, write_json

FORMAT = "abmll-activations-2"
FOLDERS = "activations-*"
SHARD_BYTES = 32 * 2**20
ABANDONED_SECONDS = 3600.0


@dataclass
class Shard:
    """An open file of rows; ``sums`` are their checksums, ``checked`` the rows that were found to have theirs."""

    path: Path
    file: Any
    sums: dict[str, int]
    checked: set[str] = field(default_factory=set)


class ActivationStore:
    """The rows of one ``identity`` in the folder ``root``, which other identities and processes use too.

    ``max_bytes`` bounds all rows in ``root``: once they have reached it nothing more is written (nothing is thrown
    out: a run that reads more than fits, over and over, would find nothing left of it), which ``announce`` is told.
    Several processes that write at once can each exceed it by a shard.
    Raises ``AbmllError`` where the folder cannot be made.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, Any],
        max_bytes: int,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        identity = dict(identity) | {"format": FORMAT}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.root = root
        self.folder = root / f"activations-{digest[:16]}"
        self.max_bytes = max_bytes
        self.announce = announce
        self.writable = True
        self.shards: dict[str, Shard | None] = {}  # by name; None: not to be used
        self.rows: dict[str, Shard] = {}
        self.looked = 0  # the folder's time of change when it was last looked through
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        if not (self.folder / "identity.json").exists():
            write_json(self.folder / "identity.json", identity)
        self._clear_abandoned()
        self._look()

    def get(self, key: str) -> Tensor | None:
        """The row (T, d) of ``key``, or None.

        It is a view of the mapped file, on the CPU and not to be written to; one that is not on disk yet is as given.
        """
        if key in self.pending:
            return self.pending[key]
        if key not in self.rows:
            self._look()
        while (shard := self.rows.get(key)) is not None:
            row = _read(shard, key)
            if row is not None:
                return row
            self._drop(shard)
        return None

    def put(self, key: str, row: Tensor) -> None:
        """Keep a row; it reaches the disk when a shard is full, or with ``flush``."""
        if not self.writable or key in self.pending:
            return
        self.pending[key] = row
        self.pending_bytes += row.nbytes
        if self.pending_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not on disk yet. Where the disk refuses, ``announce`` is told, and no more is."""
        self._look()
        rows = {key: row for key, row in self.pending.items() if key not in self.rows}
        self.pending, self.pending_bytes = {}, 0
        if not rows or not self.writable:
            return
        tensors = {key: row.detach().cpu().contiguous() for key, row in rows.items()}
        sums = json.dumps({key: _checksum(tensor) for key, tensor in tensors.items()})
        data = save(tensors, metadata={"format": "pt", "crc32": sums})
        if self._num_bytes() + len(data) > self.max_bytes:
            self._stop(
                f"activation_cache_dir {self.root} is full; delete it or raise activation_cache_disk_gb to keep more"
            )
            return
        try:
            write_bytes(self.folder / f"{os.getpid()}-{uuid.uuid4().hex}.safetensors", data)
        except AbmllError as error:
            self._stop(f"activation_cache_dir: {error}")
        self._look()

    def _stop(self, reason: str) -> None:
        """Write no more: a run does not end because its cache cannot grow."""
        self.writable = False
        self.announce(f"{reason}; activations computed from here on are not kept on disk")

    def _num_bytes(self) -> int:
        """What all shards in the root hold, those of other identities included."""
        return sum(_size(path) for path in self.root.glob(f"{FOLDERS}/*.safetensors"))

    def _look(self) -> None:
        """Take up the shards that this or another process has added since the last look."""
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self.looked:
                return
            added = [path for path in self.folder.glob("*.safetensors") if path.name not in self.shards]
        except FileNotFoundError:  # deleted by the user
            return
        self.looked = changed
        for path in added:
            shard = self.shards[path.name] = _open(path)
            self._index(shard)

    def _index(self, shard: Shard | None) -> None:
        if shard is not None:
            self.rows.update((key, shard) for key in shard.sums if key not in self.rows)

    def _drop(self, damaged: Shard) -> None:
        """Forget a shard and delete it; a row that another process has written too is found in that one's shard."""
        _delete(damaged.path)
        self.shards[damaged.path.name] = None
        self.rows = {}
        for shard in self.shards.values():
            self._index(shard)
        self._look()

    def _clear_abandoned(self) -> None:
        """Delete what killed processes left half written."""
        for path in self.folder.glob(".*.tmp"):
            if time.time() - _modified(path) > ABANDONED_SECONDS:
                _delete(path)


def _open(path: Path) -> Shard | None:
    """The shard, or None where it is damaged (then it is deleted) or cannot be read."""
    try:
        file = safe_open(path, framework="pt")
        return Shard(path, file, json.loads((file.metadata() or {})["crc32"]))
    except (SafetensorError, ValueError, KeyError):
        _delete(path)
    except OSError:  # deleted since, or not ours to read
        pass
    return None


def _delete(path: Path) -> None:
    """Delete a file where that is allowed; one that stays is not used."""
    with suppress(OSError):
        path.unlink()


def _read(shard: Shard, key: str) -> Tensor | None:
    """The row, or None where it is not what was written; its checksum is looked at once."""
    try:
        row = shard.file.get_tensor(key)
    except SafetensorError:
        return None
    if key not in shard.checked:
        if _checksum(row) != shard.sums[key]:
            return None
        shard.checked.add(key)
    return row


def _checksum(row: Tensor) -> int:
    """CRC-32 of a contiguous row's bytes."""
    return zlib.crc32(row.view(torch.uint8).numpy().data)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # deleted by another process
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
