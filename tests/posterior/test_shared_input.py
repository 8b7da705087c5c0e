"""Layers that share an input give what each of them gives alone, with the very noise that they draw alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from abmll.posterior import Draws, Factors, Noise, WeightSpace

SPACE, RANK, R = WeightSpace(2.0), 3, 2
# Two stacks: of "q", wide, and of "k" and "v", narrow; two blocks, in the order in which a model calls them.
CALLS = {"q0": (0, 0), "k0": (1, 0), "v0": (1, 1), "q1": (0, 1), "k1": (1, 2), "v1": (1, 3)}
GROUPS = [("q0", "k0", "v0"), ("q1", "k1", "v1")]
APART = [(name,) for name in CALLS]
MIXED = [("q0",), ("k0", "v0"), ("q1", "k1", "v1")]


@pytest.fixture
def stacks(make_factors: Callable[..., Factors]) -> list[Factors]:
    made = [make_factors(2, 5, 7, R), make_factors(4, 3, 7, R)]
    return [factors.requires_grad_() for factors in made]


@pytest.fixture
def inputs(generator: torch.Generator) -> list[Tensor]:
    """What the layers of each block read."""
    return [torch.randn(1, 4, 7, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def alone(stacks: Sequence[Factors], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Every layer's own update, in the order of the calls."""
    noise = Noise("local", torch.Generator().manual_seed(7), rank=RANK)
    layers = [SPACE.layers(factors, noise) for factors in stacks]
    return [layers[stack][layer](inputs[int(name[1])]) for name, (stack, layer) in CALLS.items()]


def together(
    stacks: Sequence[Factors], inputs: Sequence[Tensor], groups: Sequence[tuple[str, ...]], known: Sequence[str]
) -> list[Tensor]:
    noise = Noise("local", torch.Generator().manual_seed(7), rank=RANK)
    draws = Draws(noise.generator, RANK, dict.fromkeys(CALLS, 0), known)
    places = {names: [CALLS[name] for name in names] for names in groups}
    updates = SPACE.grouped_layers(stacks, places, noise, draws)
    assert updates is not None
    return [updates[name](inputs[int(name[1])]) for name in CALLS]


@pytest.mark.parametrize("groups", [GROUPS, APART, MIXED])
@pytest.mark.parametrize("known", [[*CALLS], [], ["q0", "k0", "v0"]])
def test_outputs_and_gradients_are_those_of_layers_alone(
    stacks: list[Factors], inputs: list[Tensor], groups: list[tuple[str, ...]], known: list[str]
) -> None:
    leaves = [*inputs, *(tensor for factors in stacks for tensor in factors)]
    weights = [torch.linspace(-1, 1, steps=output.numel()).view_as(output) for output in alone(stacks, inputs)]

    def gradients(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = torch.stack([(w * y.square()).sum() for w, y in zip(weights, outputs, strict=True)]).sum()
        return torch.autograd.grad(loss, leaves)

    wanted, got = alone(stacks, inputs), together(stacks, inputs, groups, known)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradients(got), gradients(wanted))


def test_second_derivatives_by_finite_differences(stacks: list[Factors], inputs: list[Tensor]) -> None:
    """A rule that learns through its inner steps needs them."""

    def sample(*tensors: Tensor) -> Tensor:
        own = [Factors(*tensors[2:6]), Factors(*tensors[6:])]
        return torch.stack([output.sum() for output in together(own, tensors[:2], GROUPS, [*CALLS])]).sum()

    assert torch.autograd.gradgradcheck(sample, (*inputs, *stacks[0], *stacks[1]))


def test_other_tensors_are_read_on_their_own(stacks: list[Factors], inputs: list[Tensor]) -> None:
    """Where a model hands every layer a copy, the answers are the same."""
    noise = Noise("local", torch.Generator().manual_seed(7), rank=RANK)
    draws = Draws(noise.generator, RANK, dict.fromkeys(CALLS, 0), [*CALLS])
    places = {names: [CALLS[name] for name in names] for names in GROUPS}
    updates = SPACE.grouped_layers(stacks, places, noise, draws)
    assert updates is not None
    got = [updates[name](inputs[int(name[1])].clone()) for name in CALLS]
    torch.testing.assert_close(got, alone(stacks, inputs))


@pytest.mark.parametrize("noise", [Noise("shared", torch.Generator(), rank=2), Noise("local", torch.Generator())])
def test_only_local_noise_of_some_rank_is_grouped(stacks: list[Factors], noise: Noise) -> None:
    draws = Draws(noise.generator, noise.rank, {}, [])
    assert SPACE.grouped_layers(stacks, {}, noise, draws) is None
    local = Noise("local", torch.Generator(), rank=2)
    assert WeightSpace(2.0, sigma_rank=2).grouped_layers(stacks, {}, local, draws) is None


def test_draws_are_those_of_each_layer_in_its_turn() -> None:
    """With vectors of its channels before those of its positions; asked for again, the same."""
    channels = {"a": 2, "b": 3}
    draws = Draws(torch.Generator().manual_seed(1), 2, channels, ["a", "b"])
    like, generator = torch.zeros(()), torch.Generator().manual_seed(1)
    found = {name: draws.take((name,), 5, like) for name in ("b", "a")}
    for name in channels:
        parts = [torch.randn(size, 2, generator=generator) for size in (channels[name], 5)]
        rows, units = found[name]
        torch.testing.assert_close(rows, torch.cat(parts), rtol=0, atol=0)
        torch.testing.assert_close(units, torch.nn.functional.normalize(rows, dim=-1))
        assert draws.take((name,), 5, like)[0] is not rows
        torch.testing.assert_close(draws.take((name,), 5, like)[0], rows, rtol=0, atol=0)
    fewer = draws.take(("b",), 4, like)
    assert fewer[0].shape == (7, 2)
    assert draws.take(("b",), 4, like) is fewer
