"""Folders of tensors and documents that are whole, checked by hash, and free of code: safetensors and JSON only."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from abmll.common.documents import FORMATS, Document, read_json, refuse_unreadable, write_document
from abmll.common.errors import CheckpointError
from abmll.common.files import atomic_folder, read_regular, refuse_link_out, remove, restore, sha256_file

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
MAX_TENSORS = 64 << 30  # bytes of a file
STATE = "state.json"
DOCUMENT = "posterior.json"
BEST = "best.json"
READ_NEWEST = f"delete {BEST}, and the newest checkpoint is the run's"


@dataclass(frozen=True)
class Layout:
    """What a kind of folder must have, and what its user can do where it is damaged."""

    kind: str  # a key of FORMATS
    tensors: tuple[str, ...]
    remedy: str


# The document's name tells the kind.
LAYOUTS = {
    STATE: Layout("checkpoint", ("theta", "optimizer_phi"), "delete the folder to fall back on an older one"),
    DOCUMENT: Layout("posterior", (), "adapt to the task again"),
}


@dataclass(frozen=True)
class Bundle:
    """What one folder holds: named groups of tensors (a file each) and one JSON document."""

    tensors: dict[str, dict[str, Tensor]]
    document: Document


def save_bundle(
    folder: Path, bundle: Bundle, document_name: str, overwrite: bool = False, beside: Mapping[str, str] | None = None
) -> None:
    """Write ``bundle`` to ``folder`` atomically, with the sha256 of every file in its manifest.

    ``document_name`` is one of ``LAYOUTS``; the document gets its format as one more key. ``beside`` are the texts of
    further files by name. Raises ``AbmllError`` for a document that could not be read again.
    """
    with atomic_folder(folder, overwrite=overwrite) as target:
        write_bundle(target, bundle, document_name, beside)


def write_bundle(target: Path, bundle: Bundle, document_name: str, beside: Mapping[str, str] | None = None) -> None:
    """``save_bundle`` into an empty folder ``target`` that nobody reads yet, such as a part of an ``atomic_folder``."""
    for name, tensors in bundle.tensors.items():
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        (target / f"{name}.safetensors").write_bytes(save(contiguous, metadata={"format": "pt"}))
    about = {"format": FORMATS[LAYOUTS[document_name].kind], "tensors": sorted(bundle.tensors)}
    document = bundle.document | about
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    refuse_unreadable(LAYOUTS[document_name].kind, text)
    for name, content in {document_name: text, **(beside or {})}.items():
        (target / name).write_text(content, encoding="utf-8")
    hashes = {path.name: sha256_file(path) for path in sorted(target.iterdir())}
    (target / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1) + "\n", encoding="utf-8")


def load_bundle(folder: Path, document_name: str) -> Bundle:
    """Read a folder back: the files that its manifest lists, and no others.

    Raises ``CheckpointError`` naming the file that is missing, truncated, altered or of another version, and what to
    do.
    """
    layout, manifest = LAYOUTS[document_name], folder / MANIFEST
    restore(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if document_name == STATE:  # which is itself in a saved folder
        refuse_link_out(folder.parent, folder, layout.remedy, CheckpointError)
    if not manifest.exists():
        raise CheckpointError(f"{manifest}: missing; {folder} is no {layout.kind}, or damaged: {layout.remedy}")
    listed = read_json(manifest, "manifest", layout.remedy)["sha256"]
    if document_name not in listed:
        raise CheckpointError(f"{manifest}: does not list {document_name}; is this another kind of folder?")
    for group in layout.tensors:
        if f"{group}.safetensors" not in listed:
            raise CheckpointError(f"{manifest}: does not list {group}.safetensors, so it is damaged; {layout.remedy}")
    for name in listed:
        refuse_link_out(folder, folder / name, layout.remedy, CheckpointError)
    files = {folder / name: _verified(folder / name, digest, layout.remedy) for name, digest in listed.items()}
    document = read_json(folder / document_name, layout.kind, layout.remedy, data=files[folder / document_name])
    groups = {path.stem for path in files if path.suffix == ".safetensors"}
    named = document.pop("tensors", None)
    wanted = groups if named is None else set(named)  # 0.2.0 did not name them yet
    for group in sorted(groups ^ wanted):
        side = "lists no" if group in wanted else "lists a strange"
        raise CheckpointError(f"{manifest}: {side} {group}.safetensors, so it is damaged; {layout.remedy}")
    tensors = {
        path.stem: _tensors(path, data, layout.remedy) for path, data in files.items() if path.suffix == ".safetensors"
    }
    return Bundle(tensors, document)


def _verified(path: Path, digest: str, remedy: str) -> bytes:
    """The content of a listed file, checked against its hash."""
    data = read_regular(path, MAX_TENSORS, remedy, CheckpointError)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path}: does not match its sha256 in {MANIFEST}, so it is damaged; {remedy}")
    return data


def _tensors(path: Path, data: bytes, remedy: str) -> dict[str, Tensor]:
    try:
        return load(data)
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {remedy}") from error


def refuse_other_base(document: Mapping[str, Any], is_known_by: Callable[[str], bool], name: str, where: Path) -> None:
    """Raise ``CheckpointError`` where what was saved with ``document`` belongs to other weights than the loaded ones.

    ``name`` is that of the base model that is loaded, and ``is_known_by`` says whether a fingerprint can be its own.
    """
    if not is_known_by(document["base_fingerprint"]):
        raise CheckpointError(
            f"{where}: was learned on {document['settings']['model']}, but the model loaded from {name} has other "
            "weights; name the right one with --model"
        )


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run folder by episode, oldest first."""
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
        raise CheckpointError(
            f"{run}: no checkpoint in it; is it a run's folder? A run that stopped before its first checkpoint must be "
            "started again, with --overwrite"
        )
    return found[max(found)]


def best_episode(run: Path) -> int | None:
    """The episode of the checkpoint that a run has chosen at its end; None where it chose none.

    Raises ``CheckpointError`` for a damaged file.
    """
    path = run / BEST
    return read_json(path, "best", READ_NEWEST)["episode"] if path.exists() else None


def write_best(run: Path, episode: int) -> None:
    """Let the run's theta be that of the checkpoint of after so many episodes, whatever checkpoints are newer."""
    write_document(run / BEST, "best", {"episode": episode})


def model_checkpoint(run: Path) -> Path:
    """The checkpoint with the run's theta: the one that it has chosen at its end, else the newest.

    Raises ``CheckpointError`` as ``latest_checkpoint``, and where the chosen one is not there.
    """
    newest, best = latest_checkpoint(run), best_episode(run)
    chosen = newest if best is None else checkpoints(run).get(best)
    if chosen is None:
        raise CheckpointError(f"{run / BEST}: names {PREFIX}{best}, which is not there; {READ_NEWEST}")
    return chosen


def keep_newest(run: Path, limit: int, best: int | None = None) -> None:
    """Delete all but the ``limit`` newest checkpoints (at least 1) and that of the episode ``best``."""
    for episode, path in list(checkpoints(run).items())[:-limit]:
        if episode != best:
            remove(path)
