"""Tiny models and examples for the peers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.common.config import ModelConfig
from abmll.language.base import Base, load_base
from abmll.language.encoding import Encoded


@pytest.fixture
def make_base(tiny_llama: Path) -> Callable[..., Base]:
    """make_base(attention): the tiny Llama, loaded afresh, in fp32."""

    def make(attention: str = "eager") -> Base:
        base = load_base(ModelConfig(str(tiny_llama), "fp32", "cpu"), lambda line: None, quiet=True)
        model: Any = base.model
        model.set_attn_implementation(attention)
        return base

    return make


@pytest.fixture
def examples() -> list[Encoded]:
    """Three examples of different lengths, answers of one to three tokens."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 259, (count,), generator=generator).tolist())

    return [
        Encoded(tokens(9), (tokens(2), tokens(1)), 0),
        Encoded(tokens(4), (tokens(1), tokens(3)), 1),
        Encoded(tokens(6), (tokens(1), tokens(1)), 1),
    ]
