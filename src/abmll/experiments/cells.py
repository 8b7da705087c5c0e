"""A cell: one method on one suite with one seed under certain settings, and where its result lies.

``cells/<suite>/<method>-s<seed>-<hash>.json`` holds the result, ``....predictions.jsonl`` beside it what every example
was answered. The hash is of everything that the result depends on, so a cell is never computed twice and never
mistaken for another. Training runs lie in ``runs/<method>-s<seed>-<hash>``, with the hash of what they depend on: cells
that differ in how they adapt or predict, and methods that continue another one's training, share them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.common.errors import CheckpointError
from abmll.common.files import write_json, write_text
from abmll.experiments.budget import CURVES
from abmll.experiments.method_spec import Spec

FORMAT = "abmll-cell-2"
Document = dict[str, Any]  # a JSON object as it is read and written
# What changes how a result is computed, but not the result.
PASSING = (
    "device",
    "save_steps",
    "save_total_limit",
    "activation_cache_gb",
    "activation_cache_dir",
    "activation_cache_disk_gb",
)


@dataclass(frozen=True)
class Training:
    """A training run: the method trained, its flat settings (the seed is apart), and a hash of its data.

    ``kept_episodes`` are those after which its theta is wanted; they change nothing that is learned.
    """

    method: str
    seed: int
    settings: Mapping[str, Any]
    data: str
    kept_episodes: Sequence[int] = ()

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-s{self.seed}-{digest([FORMAT, self.data, _lasting(self.settings)])}"


@dataclass(frozen=True)
class Cell:
    """What is to be computed; ``settings`` are flat, ``data`` is a hash of the evaluation tasks."""

    suite: str
    spec: Spec
    seed: int
    settings: Mapping[str, Any]
    data: str
    training: Training | None
    is_main: bool = True  # whether the tables are of it; the others make curves

    @property
    def hash(self) -> str:
        """Of everything that the result depends on."""
        trained = None if self.training is None else self.training.name
        return digest([FORMAT, self.suite, self.spec.key, self.seed, self.data, _lasting(self.settings), trained])

    @property
    def row(self) -> str:
        """The row of a table that it belongs to: the method, and what became of its probabilities."""
        return row_key(self.spec.key, self.settings["recalibrate"])

    def path(self, folder: Path) -> Path:
        """The file of its result."""
        return folder / "cells" / self.suite / f"{self.spec.key.replace('@', '+')}-s{self.seed}-{self.hash}.json"

    def point(self) -> dict[str, Any]:
        """Where it lies on the curves."""
        return {name: self.settings[name] for name in CURVES}


def row_key(key: str, recalibrate: str) -> str:
    """The key of a method's row, such as ``abmll`` or ``abmll+meta``."""
    return key if recalibrate == "none" else f"{key}+{recalibrate}"


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of JSON-ready values, the same for every order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in PASSING}


def predictions_path(cell: Path) -> Path:
    """Where the predictions of the cell in this file lie."""
    return cell.with_suffix(".predictions.jsonl")


def save_cell(path: Path, document: Mapping[str, Any], predictions: Iterable[Mapping[str, Any]]) -> None:
    """Write predictions and then the result, each whole or not at all: a result is there only once all of it is."""
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in predictions)
    write_text(predictions_path(path), lines)
    write_json(path, {"format": FORMAT, **document, "predictions": predictions_path(path).name})


def load_json(path: Path, remedy: str) -> Any:
    """The JSON in that file. Raises ``CheckpointError`` for a damaged one, with the ``remedy``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); {remedy}") from error


def load_cell(path: Path) -> Document | None:
    """The result in that file, None where there is none. Raises ``CheckpointError`` for a damaged one."""
    if not path.exists():
        return None
    document = load_json(path, "delete it, and the cell is computed again")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no result of this version; delete it, and the cell is computed again")
    return document


def load_predictions(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a cell's predictions; nothing where the file is not there, as in a repository of results alone."""
    file = predictions_path(path)
    if not file.exists():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{file}:{number}: damaged ({error}); delete the cell beside it") from error
