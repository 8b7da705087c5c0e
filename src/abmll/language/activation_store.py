"""Rows of activations on disk: a file each, named by the row's key, in a folder named by what computed them.

A file is written whole or not at all and never changed, so any number of processes may share a folder. It is not
flushed to the disk at once: a file that a loss of power has damaged fails its checksum, is deleted and computed again.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from abmll.common.errors import AbmllError
from abmll.common.files import disk_errors, temporary_sibling, write_json

FORMAT = "abmll-activations-3"


class ActivationStore:
    """The rows of one ``identity`` in the folder ``root``, which other identities and processes use too.

    ``max_bytes`` bounds all files below ``root``. Once they have reached it nothing more is written, which
    ``announce`` is told. Nothing is thrown out: a run that reads more than fits, over and over, would find nothing
    left of it. Each of several processes that write at once can exceed the bound by a hundredth.
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
        self.allowance = 0  # bytes to be written before the folder is measured again
        if not (self.folder / "identity.json").exists():
            write_json(self.folder / "identity.json", identity)

    def get(self, key: str) -> Tensor | None:
        """The row (T, d) of ``key`` on the CPU, a view of the mapped file that must not be written to; or None."""
        path = self._path(key)
        if not path.is_file():  # to open a pipe would wait for its writer
            return None
        try:
            with safe_open(path, framework="pt") as file:
                row, checksum = file.get_tensor("row"), file.metadata()["crc32"]
            if str(_checksum(row)) == checksum:
                return row
        except OSError:  # not ours to read
            return None
        except (SafetensorError, KeyError, TypeError):
            pass
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, row: Tensor) -> None:
        """Write a row. A disk that is full or refuses ends the writing, which ``announce`` is told, but not the run."""
        if not self.writable:
            return
        path, row = self._path(key), row.detach().cpu().contiguous()
        data = save({"row": row}, metadata={"format": "pt", "crc32": str(_checksum(row))})
        if len(data) > self.allowance:
            free = self.max_bytes - sum(_size(path) for path in self.root.glob("activations-*/*.safetensors"))
            if len(data) > free:
                remedy = "delete it or raise activation_cache_disk_gb to keep more"
                return self._stop(f"activation_cache_dir {self.root} is full; {remedy}")
            self.allowance = min(free, max(len(data), self.max_bytes // 100))
        self.allowance -= len(data)
        temporary = temporary_sibling(path)
        try:
            with disk_errors(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(data)
                os.replace(temporary, path)
        except AbmllError as error:
            self._stop(f"activation_cache_dir: {error}")
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _stop(self, reason: str) -> None:
        self.writable = False
        self.announce(f"{reason}; activations computed from here on are not kept on disk")


def _checksum(row: Tensor) -> int:
    """CRC-32 of a contiguous row's bytes."""
    return zlib.crc32(row.view(torch.uint8).numpy().data)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # deleted by another process
        return 0
