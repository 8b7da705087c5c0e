"""Results on disk: a file for every finished cell, and the document that is made of them.

A cell's file is written atomically as soon as its rows are there, so that a stopped run loses one cell. It is used
again as long as code, machine, versions and settings are the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.common.documents import read_json
from abmll.common.files import remove, write_json
from benchmarks.rows import Row

FORMAT = "abmll-benchmarks-1"


@dataclass(frozen=True)
class Store:
    """The cells in ``folder`` that were measured under ``key``."""

    folder: Path
    key: dict[str, Any]

    def load(self, cell: str) -> list[dict[str, Any]] | None:
        """The rows of a finished cell, or None where it has to be measured."""
        path = self._path(cell)
        if not path.exists():
            return None
        document = read_json(path, None, "measure the cell again with --fresh")
        return document["rows"] if document["key"] == self.key else None

    def save(self, cell: str, rows: Sequence[Row], seconds: float) -> list[dict[str, Any]]:
        """Keep a finished cell; returns its rows as JSON."""
        documents = [{"cell": cell} | row.document() for row in rows]
        write_json(self._path(cell), {"key": self.key, "seconds": round(seconds, 1), "rows": documents})
        return documents

    def clear(self, cells: Iterable[str]) -> None:
        """Forget these cells."""
        for cell in cells:
            remove(self._path(cell))

    def _path(self, cell: str) -> Path:
        return self.folder / f"{cell}.json"


def results(
    rows: Sequence[dict[str, Any]], machine: dict[str, Any], versions: dict[str, str], commit: str, quick: bool
) -> dict[str, Any]:
    """What ``results.json`` holds; ``smoke`` says that the numbers mean nothing."""
    return {
        "format": FORMAT,
        "smoke": quick,
        "commit": commit,
        "machine": machine,
        "versions": versions,
        "rows": list(rows),
    }
