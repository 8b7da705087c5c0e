"""Thetas that come with the package: training runs on the embedded model, each under a name."""

from collections.abc import Mapping
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
    return next((folder for folder in THETAS.iterdir() if folder.name == str(name)), None)


def meant_theta(theta: Path | str | None, model: str, is_quantized: bool) -> Path | str | None:
    """``theta``, or in place of ``AUTO_THETA`` the usual one for the embedded model, and none for any other."""
    if str(theta) != AUTO_THETA:
        return theta
    return USUAL if model == ModelConfig.model and not is_quantized else None


def reference_to(theta: Mapping[str, Tensor]) -> Document | None:
    """What is saved in place of these tensors, where they are a shipped theta's; else None."""
    for folder in THETAS.iterdir():
        known = load_bundle(model_checkpoint(folder), STATE).tensors["theta"]
        if known.keys() == theta.keys() and all(torch.equal(known[name], theta[name]) for name in known):
            return {"name": folder.name, "sha256": _sha256(folder)}
    return None


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
    return load_bundle(model_checkpoint(folder), STATE).tensors["theta"]


def _sha256(folder: Path) -> str:
    manifest = read_json(model_checkpoint(folder) / MANIFEST, "manifest", "install abmll again")
    return manifest["sha256"][FILE]
