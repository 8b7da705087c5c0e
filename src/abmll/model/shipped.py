"""Thetas that come with the package: training runs on the embedded model, each under a name that keeps its numbers."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from abmll.common.checkpoint import MANIFEST, STATE, load_bundle, model_checkpoint
from abmll.common.config import AUTO_THETA, ModelConfig
from abmll.common.documents import Document, read_json
from abmll.common.errors import CheckpointError

THETAS = Path(__file__).parent / "thetas"
USUAL = "bigbench"
FILE = "theta.safetensors"


def shipped_theta(name: Path | str) -> Path | None:
    """The folder of the theta that is called ``name``; None where there is none."""
    return _shipped().get(str(name))


def meant_theta(theta: Path | str | None, model: str, is_quantized: bool) -> Path | str | None:
    """``theta``, or in place of ``AUTO_THETA`` the folder of the usual one for the embedded model, else None."""
    if str(theta) != AUTO_THETA:
        return theta
    return THETAS / USUAL if model == ModelConfig.model and not is_quantized else None


def name_of(theta: Mapping[str, Tensor]) -> str | None:
    """The name of the shipped theta that has these tensors; None where there is none, and of no tensors."""
    for name, folder in _shipped().items() if theta else ():
        known = _tensors(folder)
        if known.keys() == theta.keys() and all(torch.equal(known[key], theta[key]) for key in known):
            return name
    return None


def reference_to(theta: Mapping[str, Tensor]) -> Document | None:
    """What is saved in place of these tensors, where they are a shipped theta's; else None."""
    name = name_of(theta)
    return None if name is None else {"name": name, "sha256": _sha256(_shipped()[name])}


def referred_to(reference: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """The tensors in whose place ``reference`` was saved, in ``path``.

    Raises ``CheckpointError`` where this version has no such theta.
    """
    folder = shipped_theta(reference["name"])
    if folder is None or _sha256(folder) != reference["sha256"]:
        raise CheckpointError(
            f"{path}: was learned on the features of theta '{reference['name']}' ({reference['sha256']:.8}), which "
            "comes with another version of abmll, not with this one; adapt to the task again"
        )
    return _tensors(folder)


def _shipped() -> dict[str, Path]:
    return {folder.name: folder for folder in sorted(THETAS.iterdir()) if folder.is_dir()}


@cache
def _tensors(folder: Path) -> dict[str, Tensor]:
    return load_bundle(model_checkpoint(folder), STATE).tensors["theta"]


def _sha256(folder: Path) -> str:
    manifest = read_json(model_checkpoint(folder) / MANIFEST, "manifest", "install abmll again")
    return manifest["sha256"][FILE]
