"""A tiny model under test, and batches of examples whose options are single tokens, which any model can score."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.adapter import Adapter
from abmll.config import PromptConfig
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


@pytest.fixture
def make_scorer(tiny_llama: Path) -> Callable[..., OptionScorer]:
    """A scorer on the tiny Llama with four kinds of adapted layers; keywords are adapter settings."""

    def make(**adapter: Any) -> OptionScorer:
        settings = {"r": 2, "lora_alpha": 6.0, "target_modules": TARGETS, **adapter}
        prompt = PromptConfig(instruction=False, list_options=False, length_normalize=False)
        return AbmllModel.from_base(str(tiny_llama), prompt=prompt, dtype="fp32", **settings).scorer

    return make


@pytest.fixture
def make_theta() -> Callable[[OptionScorer], Adapter]:
    """A theta away from its start: with B zero, half of the gradients would vanish."""

    def make(scorer: OptionScorer, seed: int = 0) -> Adapter:
        theta = scorer.new_adapter(seed)
        generator = torch.Generator().manual_seed(seed)
        for _, tensor in theta.named_tensors():
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
        return theta

    return make


@pytest.fixture
def draw_examples() -> Callable[..., list[Encoded]]:
    """Random prompts of different lengths with three options of one token each."""

    def draw(count: int, seed: int = 0, shortest: int = 4) -> list[Encoded]:
        rng = random.Random(seed)
        return [
            Encoded(
                tuple(rng.randrange(3, 259) for _ in range(rng.randrange(shortest, shortest + 5))),
                tuple((token,) for token in rng.sample(range(3, 259), 3)),
                rng.randrange(3),
            )
            for _ in range(count)
        ]

    return draw
