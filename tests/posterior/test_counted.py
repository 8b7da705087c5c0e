"""The compiled form of an adapter with noise, against the one with nodes of its own."""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior import Factors, WeightSpace
from abmll.posterior.counted import CountedUpdate, counted_layers
from abmll.posterior.noise import sampled_outputs, smallest

KEY, RANK = torch.tensor([3, 4]), 6
SPACE = WeightSpace(1.5)


def stacks() -> list[Factors]:
    """Two stacks of unlike shapes, in double precision, away from their start."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for count, d_out, d_in in ((3, 5, 7), (2, 4, 7)):
        sizes = ((count, 2, d_in), (count, d_out, 2), (count, 1, d_in), (count, d_out, 1))
        found.append(Factors(*(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)))
    return found


def leaves(factors: list[Factors], x: Tensor) -> list[Tensor]:
    return [one.requires_grad_() for one in (x, *(tensor for stack in factors for tensor in stack))]


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_outputs(kind: Literal["local", "shared"]) -> None:
    factors, x = stacks(), torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[1, 2] = 0.0
    found, wanted, weight = [], [], torch.arange(2.0, 10.0).double().view(2, 4, 1)
    for stack, layers in zip(factors, counted_layers(factors, SPACE.scaling, kind, RANK, (2, 4), KEY), strict=True):
        for index, layer in enumerate(layers):
            assert isinstance(layer, CountedUpdate)
            found.append((layer(x) * weight).sin().sum())
            units = F.normalize(layer.drawn if kind == "local" else x @ layer.drawn, dim=-1).flatten(0, 1)[:, None]
            square_A = (2 * stack.scale_A[index]).exp().expand(RANK, -1)
            joint = layer.left, stack.mean_A[index], square_A, units, smallest(x), [len(layer.left)]
            [output] = sampled_outputs(x.flatten(0, 1), *joint)
            wanted.append((output.view(2, 4, -1) * weight).sin().sum())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_gradients_are_those_of_differences(kind: Literal["local", "shared"]) -> None:
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x: Tensor, *tensors: Tensor) -> Tensor:
        factors = [Factors(*tensors[:4]), Factors(*tensors[4:])]
        each = counted_layers(factors, SPACE.scaling, kind, RANK, (2, 3), KEY)
        return torch.stack([layer(x).sin().sum() for layers in each for layer in layers]).sum()

    assert torch.autograd.gradcheck(loss, leaves(stacks(), x))


def test_local_noise_is_a_tokens_own_whatever_is_beside_it() -> None:
    factors, x = stacks(), torch.randn(2, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    [[layer, *_], _] = counted_layers(factors, SPACE.scaling, "local", RANK, (2, 4), KEY)
    [[longer, *_], _] = counted_layers(factors, SPACE.scaling, "local", RANK, (3, 9), KEY)
    more = F.pad(x, (0, 0, 0, 5, 0, 1), value=2.0)
    torch.testing.assert_close(longer(more)[:2, :4], layer(x))


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_noise_has_its_variance(kind: Literal["local", "shared"]) -> None:
    factors = [Factors(*(tensor[:1] for tensor in stacks()[0]))]
    x = torch.randn(1, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = []
    for seed in range(600):
        [[layer]] = counted_layers(factors, SPACE.scaling, kind, RANK, (1, 2), torch.tensor([seed, 9]))
        drawn.append(layer(x)[0])
    samples = torch.stack(drawn)
    mean = SPACE.scaling * x[0] @ (factors[0].mean_B[0] @ factors[0].mean_A[0]).mT
    std = (x[0].square() @ (2 * factors[0].scale_A[0, 0]).exp()).sqrt()[:, None] * factors[0].scale_B[0, :, 0].exp()
    scores = (samples - mean) / std
    assert float(scores.mean(0).abs().max()) < 4 / 600**0.5
    assert float((scores.square().mean(0) - 1).abs().max()) < 4 * (2 / 600) ** 0.5
