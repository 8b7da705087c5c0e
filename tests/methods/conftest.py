"""A tiny language model under test with batches that any model can score, and a toy network in double precision."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel
from abmll.common.config import AdapterConfig, PromptConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer, Pass, Scores
from abmll.methods import Loss, Rule
from abmll.posterior import Factors, WeightSpace

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
                bare=(5, 6, 7),
            )
            for _ in range(count)
        ]

    return draw


class Given:
    """Steps written out, in the place of a ``Support``: the same batches and generators for every learner."""

    def __init__(self, steps: Iterable[tuple[Any, torch.Generator]]) -> None:
        self.steps = steps
        self.losses: list[Loss] = []

    def batches(self, learner: int = 0) -> Iterator[tuple[Any, torch.Generator]]:
        yield from self.steps


@pytest.fixture
def adapt() -> Callable[..., Adapter]:
    """What a rule learns from steps written out, which is one adapter."""

    def run(rule: Rule[Any], theta: Adapter, steps: Iterable[tuple[Any, torch.Generator]]) -> Adapter:
        support: Any = Given(steps)
        [phi] = rule.adapt(theta, support)
        return phi

    return run


@dataclass
class ToyBatch:
    """Inputs (1, N, d_in) and targets (1, N, d_out) of a regression, in the place of a ``Batch``."""

    x: Tensor
    y: Tensor
    weight: float = 1.0  # of every example's likelihood
    mask: None = None

    @property
    def parts(self) -> tuple["ToyBatch", ...]:
        return (self,)

    @property
    def answers(self) -> Tensor:
        return torch.zeros(self.x.shape[1], dtype=torch.long)

    @property
    def num_tokens(self) -> int:
        return self.x.shape[1]


class ToyScorer:
    """y = W_L tanh(... tanh(W_1 x)), W_l = W0_l + s B_l A_l, y ~ N(target, 1 / 2), in the place of an ``OptionScorer``.

    With ``loss="tokens"`` a rule's negative log-likelihood is the sum of squared errors.
    """

    device = torch.device("cpu")
    compilation = None

    def __init__(self, weights: list[Tensor], r: int = 2, scaling: float = 1.5) -> None:
        self.weights = weights
        self.adapter_config = AdapterConfig(r=r, lora_alpha=scaling * r)
        self.space = WeightSpace(scaling)

    def adapter(self, factors: list[Factors]) -> Adapter:
        """One adapter of these layers' factors, each in a stack of its own."""
        shapes = [f"{one.mean_B.shape[0]}x{one.mean_A.shape[1]}" for one in factors]
        stacks = {shape: Factors(*(tensor[None] for tensor in one)) for shape, one in zip(shapes, factors, strict=True)}
        return Adapter(stacks, {shape: [f"layer {index}"] for index, shape in enumerate(shapes)})

    def scores(self, batch: ToyBatch, phi: Adapter, how: Pass | None = None) -> Scores:
        noise, hidden = (how or Pass()).noise, batch.x
        for index, (weight, factors) in enumerate(zip(self.weights, phi.stacks.values(), strict=True)):
            [update] = self.space.layers(factors, noise)
            into = torch.tanh(hidden) if index else hidden
            hidden = into @ weight.mT + update(into)
        errors = batch.weight * (batch.y - hidden).square().sum(-1)[0]
        options = torch.zeros(len(errors), 2)
        return Scores(options, options, -errors, None)


@pytest.fixture
def toy_scorer() -> type[ToyScorer]:
    return ToyScorer


@pytest.fixture
def toy_batch() -> type[ToyBatch]:
    return ToyBatch
