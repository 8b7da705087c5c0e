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
