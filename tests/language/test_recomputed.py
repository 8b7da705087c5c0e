"""Gradient checkpointing: the same losses and gradients to the bit, from a fraction of the memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer, Pass
from abmll.language.targets import decoder_blocks
from abmll.posterior import Noise

MakeScorer = Callable[..., OptionScorer]
ANSWERED = [0, 1, 2]  # of the ragged examples


@pytest.fixture
def deep(make_scorer: Any, make_folder: Callable[..., Path], randomize: Callable[..., Adapter]) -> Any:
    """A scorer on a model of six layers, and a theta and a phi apart; keywords are adapter settings."""

    def make(**adapter: Any) -> tuple[OptionScorer, Adapter, Adapter]:
        settings: dict[str, Any] = {"layers_to_transform": None, "init_log_sigma": -3.0} | adapter
        scorer = make_scorer.fresh(make_folder("llama", num_hidden_layers=6), **settings)
        return scorer, randomize(scorer.new_adapter(0)), randomize(scorer.new_adapter(0), 1)

    return make


def gradients(
    scorer: OptionScorer, theta: Adapter, phi: Adapter, examples: list[Encoded], between: Any = None, **noise: Any
) -> tuple[list[Tensor], Tensor]:
    """The loss of a noisy pass with its divergence in output space, phi's gradients, and the next random number."""
    generator = torch.Generator().manual_seed(3)
    own = phi.clone().requires_grad_()
    batch = scorer.batch(examples)
    scores = scorer.scores(batch, own, Pass(Noise(generator=generator, mask=batch.mask, **noise), theta))
    loss = -scores.answer_tokens.sum()
    loss = loss if scores.terms is None else loss + 1e-3 * scores.terms.kl()
    after = torch.randn((), generator=generator)
    if between is not None:
        between()
    loss.backward()
    learned = [tensor.grad for _, tensor in own.named_tensors() if tensor.grad is not None]
    return [loss.detach(), after, *learned], torch.randn((), generator=generator)


def assert_same_bits(scorer: OptionScorer, theta: Adapter, phi: Adapter, examples: list[Encoded], **noise: Any) -> None:
    plain, next_number = gradients(scorer, theta, phi, examples, **noise)
    assert len(plain) > 4
    blocks = list(decoder_blocks(scorer.base.model))

    def between() -> None:
        """Nothing of the pass is left in the model, and another one changes nothing."""
        assert all(map(lambda one, other: one is other, blocks, decoder_blocks(scorer.base.model)))
        assert scorer.wiring.bound is None
        scorer.scores(scorer.batch(examples[:2]), theta)

    scorer.gradient_checkpointing = True
    found, after = gradients(scorer, theta, phi, examples, between, **noise)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    assert after == next_number  # the generator goes on where the forward pass left it


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["local", "shared"])
@pytest.mark.parametrize("space", [{}, {"sigma_rank": 2}, {"space": "output"}, {"space": "factor"}])
def test_gradients_are_the_same_to_the_bit(
    deep: Any, ragged: list[Encoded], space: dict[str, Any], kind: str, rank: int
) -> None:
    scorer, theta, phi = deep(**space)
    assert_same_bits(scorer, theta, phi, [ragged[index] for index in ANSWERED], kind=kind, rank=rank)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
@pytest.mark.parametrize("layers", [None, "1"])
def test_families_and_adapters_in_upper_layers_alone(
    make_scorer: Any, randomize: Callable[..., Adapter], ragged: list[Encoded], family: str, layers: str | None
) -> None:
    scorer = make_scorer.fresh(family, layers_to_transform=layers)
    phi = randomize(scorer.new_adapter(0))
    assert_same_bits(scorer, phi, phi, [ragged[index] for index in ANSWERED], kind="local", rank=4)


def kept(scorer: OptionScorer, phi: Adapter, theta: Adapter, examples: list[Encoded]) -> int:
    """The bytes that a pass keeps for its backward pass, weights and adapters left out."""
    skip = {tensor.untyped_storage().data_ptr() for tensor in scorer.base.model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in skip:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = scorer.batch(examples)
    noise = Noise("local", torch.Generator().manual_seed(0), batch.mask, 8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = scorer.scores(batch, phi.clone().requires_grad_(), Pass(noise, theta))
    assert scores.options.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("space", ["weight", "output"])
def test_less_is_kept(deep: Any, ragged: list[Encoded], space: str) -> None:
    scorer, theta, phi = deep(space=space)
    examples = [ragged[1]] * 4
    whole = kept(scorer, phi, theta, examples)
    scorer.gradient_checkpointing = True
    assert kept(scorer, phi, theta, examples) < whole / 3


def test_a_gradient_can_be_taken_twice(deep: Any, ragged: list[Encoded]) -> None:
    scorer, _, phi = deep()
    scorer.gradient_checkpointing = True
    noise = Noise("local", torch.Generator().manual_seed(0), None, 4)
    learned = phi.requires_grad_().mean_tensors()
    loss = scorer.scores(scorer.batch(ragged[:1]), phi, Pass(noise)).answer_tokens.sum()
    first, second = (torch.autograd.grad(loss, learned, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_passes_without_gradients_are_as_they_were(deep: Any, ragged: list[Encoded]) -> None:
    scorer, _, phi = deep()
    with torch.no_grad():
        plain = scorer.scores(scorer.batch(ragged), phi).options
        scorer.gradient_checkpointing = True
        assert torch.equal(scorer.scores(scorer.batch(ragged), phi).options, plain)
