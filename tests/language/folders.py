"""Folders of language models: loaded, and changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from abmll.common.config import ModelConfig
from abmll.language.base import Base, load_base

WEIGHTS = "model.safetensors"


def load(folder: Path | str, dtype: Any = "fp32", device: str = "cpu") -> Base:
    return load_base(ModelConfig(str(folder), dtype, device), announce=lambda line: None, quiet=True)


def alter(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Save the folder's weights again after ``change``."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def flip_bit(folder: Path, bit: int, name: str = "model.layers.1.mlp.down_proj.weight") -> None:
    """Change one bit of one fp32 weight, in the midst of a matrix: one that no sample of 0.2.0's fingerprint meets."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(torch.int32)[5, 7] ^= 1 << bit if bit < 31 else -(1 << 31)

    alter(folder, change)
