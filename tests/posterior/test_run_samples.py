"""Samples of several adapters on their runs of positions, against each adapter's own sample on its run alone."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.posterior import Factors, LayerUpdate, Noise, WeightSpace
from abmll.posterior.run_samples import run_samples

SPACE = WeightSpace(2.0)
SIZES = [3, 1, 5]
STACKS = [("q", "o"), ("k",)]  # layers of one shape
GROUPS = [("q", "k"), ("o",)]  # layers that read the same tensor
D_OUT = {"q": 6, "o": 6, "k": 4}


def noise(seed: int) -> Noise:
    return Noise("shared", torch.Generator().manual_seed(seed), rank=4)


@pytest.fixture
def adapters(make_factors: Callable[..., Factors]) -> list[list[Factors]]:
    """Three, with the factors of each stack."""
    sizes = [{"num_layers": len(names), "d_out": D_OUT[names[0]], "d_in": 5, "r": 2, "k": 1} for names in STACKS]
    return [[make_factors(**size) for size in sizes] for _ in SIZES]


def by_name(stacks: Any) -> dict[str, Any]:
    return {name: one for names, own in zip(STACKS, stacks, strict=True) for name, one in zip(names, own, strict=True)}


def together(
    adapters: list[list[Factors]], noises: list[Noise | None], runs: Mapping[int, list[int]]
) -> dict[str, LayerUpdate]:
    layers = [by_name([stack.unbind() for stack in own]) for own in adapters]
    return run_samples(SPACE, layers, STACKS, GROUPS, noises, runs)


def alone(adapters: list[list[Factors]], noises: list[Noise | None], name: str, parts: tuple[Tensor, ...]) -> Tensor:
    each = [
        by_name([SPACE.layers(stack, noise) for stack in own])[name]
        for own, noise in zip(adapters, noises, strict=True)
    ]
    return torch.cat([update(part[None])[0] for update, part in zip(each, parts, strict=True)])


@pytest.mark.parametrize("seeds", [(1, 1, 1), (1, 2, 1), (None, 1, 1), (3, None, 2)])
@pytest.mark.parametrize("rows", [1, 3])
def test_each_run_has_its_own_adapters_sample(
    seeds: tuple[int | None, ...], rows: int, adapters: list[list[Factors]]
) -> None:
    """Under one noise, several, or none; on all positions and on a part of them."""
    one = {seed: None if seed is None else noise(seed) for seed in seeds}
    updates = together(adapters, [one[seed] for seed in seeds], {9: SIZES, 4: [1, 1, 2]})
    x = torch.randn(rows, 9 // rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few = x.flatten(0, 1)[[0, 3, 4, 8]]
    for name in D_OUT:
        for given, sizes in ((x, SIZES), (few[None], [1, 1, 2])):
            drawn: list[Noise | None] = [None if seed is None else noise(seed) for seed in seeds]
            wanted = alone(adapters, drawn, name, given.flatten(0, 1).split(sizes))
            torch.testing.assert_close(updates[name](given).flatten(0, 1), wanted)


def test_adapters_under_one_noise_draw_its_numbers_once(adapters: list[list[Factors]]) -> None:
    shared, alone = noise(0), noise(0)
    together(adapters, [shared] * 3, {9: SIZES})
    together(adapters[:1], [alone], {9: [9]})
    assert torch.equal(shared.generator.get_state(), alone.generator.get_state())


def test_products_are_in_the_factors_precision(adapters: list[list[Factors]]) -> None:
    updates = together(adapters, [noise(0)] * 3, {9: SIZES})
    x = torch.ones(1, 9, 5, dtype=torch.bfloat16)
    assert updates["q"](x).dtype == torch.float64
