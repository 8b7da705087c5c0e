"""Runs of positions with an adapter each, in one product, against each update on its run alone, with gradients."""

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from abmll.posterior import Factors, LayerUpdate, Noise, Space, WeightSpace
from abmll.posterior.bernoulli import DropoutSpace
from abmll.posterior.factor import FactorSpace
from abmll.posterior.shared_runs import shared_runs
from abmll.posterior.stacked import Layout, Shares, can_stack, stacked_layers

LAYERS = 2
CPU = torch.device("cpu")


Kind = Literal["local", "shared"] | None


def noises(kind: Kind, count: int, rank: int = 3) -> list[Noise | None]:
    if kind is None:
        return [None] * count
    return [Noise(kind, torch.Generator().manual_seed(seed), rank=rank) for seed in range(count)]


def outputs(space: Space, each: Sequence[Factors], kind: Kind, xs: Sequence[Tensor]) -> list[Tensor]:
    """Of every layer, each adapter's update on its run alone, put together."""
    made = [space.layers(own, noise) for own, noise in zip(each, noises(kind, len(each)), strict=True)]
    return [torch.cat([own[layer](x[None])[0] for own, x in zip(made, xs, strict=True)]) for layer in range(LAYERS)]


def several(space: Space, whole: Factors, kind: Kind, layout: Layout) -> Sequence[LayerUpdate]:
    """The layers' updates by three adapters at once."""
    drawn = [noise for noise in noises(kind, 3) if noise is not None]
    if kind == "local" and isinstance(space, WeightSpace):
        groups = {(f"{layer}",): [(0, layer)] for layer in range(LAYERS)}
        updates = shared_runs(space, [whole], groups, drawn, [], layout)
        return [updates[f"{layer}"] for layer in range(LAYERS)]
    return stacked_layers(space, whole, drawn or [None] * 3, layout)


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (WeightSpace(2.0), None),
        (WeightSpace(2.0), "local"),
        (WeightSpace(2.0), "shared"),
        (FactorSpace(2.0), "shared"),
        (FactorSpace(2.0), None),
    ],
)
@pytest.mark.parametrize(("sizes", "filled"), [([3, 3, 3], False), ([3, 1, 4], False), ([3, 1, 4], True)])
def test_outputs_and_gradients_are_those_of_each_alone(
    space: Space, kind: Kind, sizes: list[int], filled: bool, make_factors: Callable[..., Factors]
) -> None:
    k = 2 if isinstance(space, FactorSpace) else 1
    each = [make_factors(num_layers=LAYERS, d_out=6, d_in=5, r=2, k=k).requires_grad_() for _ in sizes]
    whole = Factors(*(torch.stack([tensor.detach() for tensor in side]) for side in zip(*each, strict=True)))
    whole.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(size, 5, dtype=torch.float64, generator=generator) for size in sizes]
    alone = [x.clone().requires_grad_() for x in xs]
    wanted = outputs(space, each, kind, alone)
    longest = max(sizes)
    rows = [torch.cat([x, torch.randn(longest - len(x) if filled else 0, 5, dtype=x.dtype)]) for x in xs]
    together = torch.cat(rows).requires_grad_()
    real = torch.cat([torch.arange(len(row)) < size for row, size in zip(rows, sizes, strict=True)])
    layout = {len(together): Shares.of(sizes, CPU, filled)}
    found = [layer(together[None])[0][real] for layer in several(space, whole, kind, layout)]
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(LAYERS, sum(sizes), 6, dtype=torch.float64, generator=generator)
    (torch.stack(found) * weights).sum().backward()
    (torch.stack(wanted) * weights).sum().backward()
    assert together.grad is not None
    torch.testing.assert_close(together.grad[real], torch.cat([x.grad for x in alone if x.grad is not None]))
    assert not together.grad[~real].any()
    for tensor, single in zip(whole, zip(*each, strict=True), strict=True):
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, torch.stack([one.grad for one in single if one.grad is not None]))
        else:
            assert all(one.grad is None for one in single)


def test_a_second_derivative_is_refused(make_factors: Callable[..., Factors]) -> None:
    whole = Factors(*(torch.stack([tensor] * 2) for tensor in make_factors(num_layers=1, d_out=6, d_in=5, r=2)))
    whole.requires_grad_()
    [layer] = stacked_layers(WeightSpace(2.0), whole, noises("shared", 2), {4: Shares.of([2, 2], CPU)})
    total = layer(torch.ones(1, 4, 5, dtype=torch.float64)).square().sum()
    with pytest.raises(NotImplementedError, match="differentiable only once"):
        torch.autograd.grad(total, [whole.mean_A], create_graph=True)


def test_what_can_be_stacked() -> None:
    generator = torch.Generator()
    local, shared = Noise("local", generator, rank=4), Noise("shared", generator, rank=4)
    assert can_stack(WeightSpace(1.0), local)
    assert can_stack(WeightSpace(1.0), shared)
    assert not can_stack(WeightSpace(1.0), Noise("shared", generator))
    assert not can_stack(WeightSpace(1.0, sigma_rank=2), shared)
    assert not can_stack(WeightSpace(1.0, sigma_floor=0.1), shared)
    assert can_stack(WeightSpace(1.0, sigma_rank=2), None)
    for space in (FactorSpace(1.0), DropoutSpace(1.0)):
        assert can_stack(space, shared)
        assert not can_stack(space, local)
