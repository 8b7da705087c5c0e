"""A cell: one method on one suite with one seed under certain settings, and where its result lies.

``cells/<suite>/<method>-s<seed>-<hash>.json`` holds the result, ``....predictions.jsonl`` beside it every prediction.
The hash is of everything that the result depends on, so a cell is never computed twice and never mistaken for another.
Training runs lie in ``runs/<method>-s<seed>-<hash>``, with the hash of what they depend on: cells that differ in how
they adapt or predict share them, and so do methods that continue another one's training.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abmll.common.config import LATER, PLACES
from abmll.common.documents import FORMATS, Document, read_json, read_json_lines, write_document, write_json_lines
from abmll.experiments.budget import CURVES
from abmll.experiments.method_spec import Settings, Spec

# Settings that change how a result is computed, but not the result.
NOT_HASHED = (
    *PLACES,
    "gradient_checkpointing",
    "save_steps",
    "save_total_limit",
    "activation_cache_gb",
    "activation_cache_dir",
    "activation_cache_disk_gb",
)
REMEDY = "delete it, and the cell is computed again"


@dataclass(frozen=True)
class Training:
    """A training run: the method trained, its flat settings (the seed is apart), and a hash of its data.

    ``kept_episodes`` are those after which its theta is wanted; they change nothing that is learned.
    """

    method: str
    seed: int
    settings: Settings
    data: str
    kept_episodes: Sequence[int] = ()

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-s{self.seed}-{digest([FORMATS['cell'], self.data, _hashed(self.settings)])}"


@dataclass(frozen=True)
class Cell:
    """What is to be computed; ``settings`` are flat, ``data`` is a hash of the evaluation tasks."""

    suite: str
    spec: Spec
    seed: int
    settings: Settings
    data: str
    training: Training | None
    is_main: bool = True  # whether the tables are of it; the others make curves

    @property
    def hash(self) -> str:
        """Of everything that the result depends on."""
        trained = None if self.training is None else self.training.name
        settings = _hashed(self.settings)
        return digest([FORMATS["cell"], self.suite, self.spec.key, self.seed, self.data, settings, trained])

    @property
    def row(self) -> str:
        """The row of a table that it belongs to: method and recalibration, such as ``abmll`` or ``abmll+meta``."""
        recalibrate = self.settings["recalibrate"]
        return self.spec.key if recalibrate == "none" else f"{self.spec.key}+{recalibrate}"

    def path(self, folder: Path) -> Path:
        """The file of its result."""
        return folder / "cells" / self.suite / f"{self.spec.key.replace('@', '+')}-s{self.seed}-{self.hash}.json"

    def point(self) -> dict[str, Any]:
        """Where it lies on the curves."""
        return {name: self.settings[name] for name in CURVES}

    def description(self) -> Document:
        """What was computed, as the result names it."""
        return {
            "suite": self.suite,
            "method": self.spec.method,
            "preset": self.spec.preset,
            "row": self.row,
            "label": self.spec.label,
            "seed": self.seed,
            "hash": self.hash,
            "is_main": self.is_main,
            "settings": dict(self.settings),
            "training": None if self.training is None else asdict(self.training) | {"name": self.training.name},
        }


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of JSON-ready values, the same for every order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _hashed(settings: Settings) -> dict[str, Any]:
    """What of them counts: a later setting does where it is not as it was when the first cells were computed."""
    return {
        key: value
        for key, value in settings.items()
        if key not in NOT_HASHED and not (key in LATER and value == LATER[key])
    }


def predictions_path(cell: Path) -> Path:
    """Where the predictions of the cell in this file lie."""
    return cell.with_suffix(".predictions.jsonl")


def save_cell(path: Path, document: Document, predictions: Iterable[Mapping[str, Any]]) -> None:
    """Write predictions and then the result, each whole or not at all: a result is there only once all of it is."""
    write_json_lines(predictions_path(path), predictions)
    write_document(path, "cell", {**document, "predictions": predictions_path(path).name})


def load_cell(path: Path) -> Document | None:
    """The result in that file, None where there is none. Raises ``CheckpointError`` for a damaged one."""
    return read_json(path, "cell", REMEDY) if path.exists() else None


def load_predictions(path: Path) -> Iterator[Document]:
    """The rows of a cell's predictions; nothing where the file is not there, as in a repository of results alone."""
    return (row for _, row in read_json_lines(predictions_path(path), "delete the cell beside it"))
