"""Layers that read the same tensor, by several adapters at once, against each adapter on its run alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from abmll.posterior import Draws, Factors, Noise, WeightSpace
from abmll.posterior.shared_runs import shared_runs
from abmll.posterior.stacked import Shares

CPU = torch.device("cpu")
GROUPS = {("q0", "k0"): [(0, 0), (1, 0)], ("q1", "k1"): [(0, 1), (1, 1)], ("o0",): [(0, 2)]}
TOGETHER = ["q0", "k0", "o0"]  # the others draw their own
ORDER = ["q0", "k0", "o0", "q1", "k1"]


def noises(count: int) -> list[Noise]:
    return [Noise("local", torch.Generator().manual_seed(seed), rank=3) for seed in range(count)]


def alone(space: WeightSpace, stacks: Sequence[Factors], noise: Noise, x: Tensor) -> list[Tensor]:
    """What one adapter adds to every layer, in the order of their calls."""
    draws = Draws(noise.generator, noise.rank, dict.fromkeys(ORDER, 0), TOGETHER)
    updates = space.grouped_layers(stacks, GROUPS, noise, draws)
    assert updates is not None
    row = x[None]
    return [updates[name](row)[0] for name in ORDER]


@pytest.mark.parametrize(("sizes", "filled"), [([3, 3, 3], False), ([3, 1, 4], False), ([3, 1, 4], True)])
def test_outputs_and_gradients_are_those_of_each_alone(
    sizes: list[int], filled: bool, make_factors: Callable[..., Factors]
) -> None:
    space, shapes = WeightSpace(2.0), [(3, 6), (2, 4)]
    each = [
        [make_factors(num_layers=layers, d_out=d_out, d_in=5, r=2, k=1).requires_grad_() for layers, d_out in shapes]
        for _ in sizes
    ]
    whole = [
        Factors(*(torch.stack([tensor.detach() for tensor in side]) for side in zip(*stack, strict=True)))
        for stack in zip(*each, strict=True)
    ]
    for stack in whole:
        stack.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(size, 5, dtype=torch.float64, generator=generator) for size in sizes]
    own = [x.clone().requires_grad_() for x in xs]
    wanted = [
        torch.cat(parts) for parts in zip(*map(alone, [space] * len(sizes), each, noises(len(sizes)), own), strict=True)
    ]
    longest = max(sizes)
    rows = [torch.cat([x, torch.ones(longest - len(x) if filled else 0, 5, dtype=x.dtype)]) for x in xs]
    together = torch.cat(rows).requires_grad_()
    real = torch.cat([torch.arange(len(row)) < size for row, size in zip(rows, sizes, strict=True)])
    layout = {len(together): Shares.of(sizes, CPU, filled)}
    updates = shared_runs(space, whole, GROUPS, noises(len(sizes)), TOGETHER, layout)
    row = together[None]
    found = [updates[name](row)[0][real] for name in ORDER]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    weights = [torch.randn(one.shape, dtype=one.dtype, generator=generator) for one in wanted]
    for outputs in (found, wanted):
        torch.stack([(one * weight).sum() for one, weight in zip(outputs, weights, strict=True)]).sum().backward()
    assert together.grad is not None
    torch.testing.assert_close(together.grad[real], torch.cat([x.grad for x in own if x.grad is not None]))
    for number, stack in enumerate(whole):
        for index, tensor in enumerate(stack):
            expected = torch.stack([one[number][index].grad for one in each])  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(tensor.grad, expected, rtol=1e-9, atol=1e-9)
