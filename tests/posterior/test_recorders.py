"""Layers of output space that share an input give and record what each of them does alone, with the very same noise."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from abmll.posterior import Draws, Factors, Noise, OutputSpace
from abmll.posterior.recorders import Recorded

SPACE, RANK, R = OutputSpace(2.0, -1.0), 3, 2
# Two stacks: of "q", wide, and of "k" and "v", narrow; two blocks, in the order in which a model calls them.
CALLS = {"q0": (0, 0), "k0": (1, 0), "v0": (1, 1), "q1": (0, 1), "k1": (1, 2), "v1": (1, 3)}
GROUPS = [("q0", "k0", "v0"), ("q1", "k1", "v1")]
APART = [(name,) for name in CALLS]
MIXED = [("q0",), ("k0", "v0"), ("q1", "k1", "v1")]
CHANNELS = {name: (5, 3)[stack] for name, (stack, _) in CALLS.items()}

Pair = tuple[Factors, Factors]


@pytest.fixture
def stacks(make_factors: Callable[..., Factors]) -> list[Pair]:
    """phi and theta of each stack."""
    made = [make_factors(num_layers, d_out, 7, R, R) for num_layers, d_out in ((2, 5), (2, 5), (4, 3), (4, 3))]
    return [(phi.requires_grad_(), theta.requires_grad_()) for phi, theta in list(pairwise(made))[::2]]


@pytest.fixture
def inputs(generator: torch.Generator) -> list[Tensor]:
    """What the layers of each block read."""
    return [torch.randn(2, 4, 7, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def alone(stacks: Sequence[Pair], inputs: Sequence[Tensor]) -> list[Recorded]:
    """Every layer by itself, in the order of the calls."""
    noise = Noise("local", torch.Generator().manual_seed(7), rank=RANK)
    layers = [SPACE.recorders(phi, theta, noise) for phi, theta in stacks]
    return [layers[stack][layer].record(inputs[int(name[1])]) for name, (stack, layer) in CALLS.items()]


def together(
    stacks: Sequence[Pair], inputs: Sequence[Tensor], groups: Sequence[tuple[str, ...]], known: Sequence[str]
) -> list[Recorded]:
    draws = Draws(torch.Generator().manual_seed(7), RANK, CHANNELS, known)
    recorders = SPACE.shared_recorders(stacks, {names: [CALLS[name] for name in names] for names in groups}, draws)
    return [recorders[name](inputs[int(name[1])]) for name in CALLS]


def leaves_of(stacks: Sequence[Pair], inputs: Sequence[Tensor]) -> list[Tensor]:
    return [*inputs, *(tensor for pair in stacks for factors in pair for tensor in factors)]


@pytest.mark.parametrize("groups", [GROUPS, APART, MIXED])
@pytest.mark.parametrize("known", [[*CALLS], [], ["q0", "k0", "v0"]])
@pytest.mark.parametrize("recorded", [True, False])
def test_outputs_and_gradients_are_those_of_layers_alone(
    stacks: list[Pair], inputs: list[Tensor], groups: list[tuple[str, ...]], known: list[str], recorded: bool
) -> None:
    """Whether or not anything is made of what they record."""

    def gradients(layers: Sequence[Recorded]) -> tuple[Tensor | None, ...]:
        chosen = [one for layer in layers for one in (layer if recorded else layer[:1])]
        weights = [torch.linspace(-1, 1, steps=one.numel()).view_as(one) for one in chosen]
        loss = torch.stack([(w * one.square()).sum() for w, one in zip(weights, chosen, strict=True)]).sum()
        return torch.autograd.grad(loss, leaves_of(stacks, inputs), allow_unused=True, materialize_grads=True)

    wanted, got = alone(stacks, inputs), together(stacks, inputs, groups, known)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradients(got), gradients(wanted))


def test_derivatives_by_finite_differences(stacks: list[Pair], inputs: list[Tensor]) -> None:
    """First ones, and second ones, of outputs and of what is recorded."""
    block, x = dict(list(CALLS.items())[:3]), inputs[0].detach()[:1, :2].requires_grad_()

    def sample(x: Tensor, *tensors: Tensor) -> Tensor:
        pairs = [(Factors(*tensors[at : at + 4]), Factors(*tensors[at + 4 : at + 8])) for at in (0, 8)]
        draws = Draws(torch.Generator().manual_seed(7), RANK, CHANNELS, [])
        recorders = SPACE.shared_recorders(pairs, {tuple(block): list(block.values())}, draws)
        return torch.cat([one.flatten() for name in block for one in recorders[name](x)]).square().sum()

    leaves = leaves_of(stacks, [x])
    assert torch.autograd.gradcheck(sample, leaves)
    assert torch.autograd.gradgradcheck(sample, leaves, fast_mode=True)


def test_an_input_in_half_precision_gives_outputs_in_it(make_factors: Callable[..., Factors]) -> None:
    """Everything between is in that of the factors."""
    pairs = [(make_factors(2, 5, 7, R, R, torch.float32), make_factors(2, 5, 7, R, R, torch.float32))]
    x = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(1)).bfloat16()

    def read(x: Tensor) -> Recorded:
        draws = Draws(torch.Generator().manual_seed(7), RANK, {"a": 5, "b": 5}, [])
        recorders = SPACE.shared_recorders(pairs, {("a", "b"): [(0, 0), (0, 1)]}, draws)
        return recorders["b"](x)

    half, whole = read(x), read(x.float())
    torch.testing.assert_close(half.coefficients, whole.coefficients)
    torch.testing.assert_close(half.output, whole.output.bfloat16())
