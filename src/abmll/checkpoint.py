"""Folders of tensors and documents that are whole, checked by hash, and free of code: safetensors and JSON only."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from abmll.errors import CheckpointError
from abmll.files import atomic_folder, sha256_file

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
STATE = "state.json"


@dataclass(frozen=True)
class Bundle:
    """What one folder holds: named groups of tensors (a file each) and one JSON document."""

    tensors: dict[str, dict[str, Tensor]]
    document: dict[str, Any]


def save_bundle(folder: Path, bundle: Bundle, document_name: str, overwrite: bool = False) -> None:
    """Write ``bundle`` to ``folder`` atomically, with the sha256 of every file in its manifest."""
    with atomic_folder(folder, overwrite=overwrite) as target:
        for name, tensors in bundle.tensors.items():
            contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            (target / f"{name}.safetensors").write_bytes(save(contiguous, metadata={"format": "pt"}))
        text = json.dumps(bundle.document, indent=1, sort_keys=True, allow_nan=False) + "\n"
        (target / document_name).write_text(text, encoding="utf-8")
        hashes = {path.name: sha256_file(path) for path in sorted(target.iterdir())}
        (target / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1) + "\n", encoding="utf-8")


def load_bundle(folder: Path, document_name: str) -> Bundle:
    """Read a folder back. Raises ``CheckpointError`` naming the file that is missing, truncated or altered."""
    for name, digest in _manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; the folder is not whole")
        if sha256_file(path) != digest:
            raise CheckpointError(f"{path}: does not match its sha256 in {MANIFEST}; the file is damaged or was edited")
    try:
        document = json.loads((folder / document_name).read_text(encoding="utf-8"))
        tensors = {path.stem: load(path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    return Bundle(tensors, document)


def _manifest(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no {MANIFEST} in it; is it a checkpoint or posterior folder?") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the file is damaged") from error


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run folder by visit, oldest first."""
    found = {
        int(path.name[len(PREFIX) :]): path
        for path in run.glob(f"{PREFIX}*")
        if path.is_dir() and path.name[len(PREFIX) :].isdigit()
    }
    return dict(sorted(found.items()))


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint. Raises ``CheckpointError`` where the folder is no run or has none yet."""
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder")
    found = checkpoints(run)
    if not found:
        raise CheckpointError(f"{run}: no checkpoint in it; is it a run folder, and did the run reach its first save?")
    return found[max(found)]


def keep_newest(run: Path, limit: int) -> None:
    """Delete all but the ``limit`` newest checkpoints."""
    for path in list(checkpoints(run).values())[:-limit]:
        shutil.rmtree(path)
