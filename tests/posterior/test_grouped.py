"""Runs of positions with an adapter each, against each update on its run alone."""

from collections.abc import Callable

import pytest
import torch

from abmll.posterior import Factors, LayerUpdate, Noise, Space, WeightSpace
from abmll.posterior.factor import FactorSpace
from abmll.posterior.grouped import grouped
from abmll.posterior.space import LowRank

SIZES = [3, 1, 5]


def update(space: Space, factors: Factors, seed: int, rank: int | None) -> LayerUpdate:
    noise = None if rank is None else Noise("shared", torch.Generator().manual_seed(seed), rank=rank)
    return space.layers(factors, noise)[0]


@pytest.mark.parametrize("space", [WeightSpace(2.0), WeightSpace(2.0, 3, 0.1), FactorSpace(2.0)], ids=["1", "3", "A B"])
@pytest.mark.parametrize("ranks", [(None, None, None), (4, 4, 4), (None, 4, 4), (2, 4, 4)])
@pytest.mark.parametrize("rows", [1, 3])
def test_each_run_is_updated_by_its_own_adapter(
    space: WeightSpace | FactorSpace, ranks: tuple[int | None, ...], rows: int, make_factors: Callable[..., Factors]
) -> None:
    """Also where the adapters' samples have other ranks, or some have none."""
    k = 2 if isinstance(space, FactorSpace) else space.sigma_rank
    factors = [make_factors(num_layers=1, d_out=6, d_in=5, r=2, k=k) for _ in ranks]
    x = torch.randn(rows, 9 // rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def updates() -> list[LayerUpdate]:
        return [update(space, one, seed, rank) for seed, (one, rank) in enumerate(zip(factors, ranks, strict=True))]

    runs = {9: SIZES, 4: [1, 1, 2]}
    parts = x.flatten(0, 1).split(SIZES)
    wanted = torch.cat([one(part[None])[0] for one, part in zip(updates(), parts, strict=True)]).view(*x.shape[:2], 6)
    torch.testing.assert_close(grouped(updates(), runs)(x), wanted)
    some = x.flatten(0, 1)[[0, 3, 4, 8]]
    wanted = torch.cat([one(part[None])[0] for one, part in zip(updates(), some.split([1, 1, 2]), strict=True)])
    torch.testing.assert_close(grouped(updates(), runs)(some[None])[0], wanted)


def test_products_are_in_the_factors_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((2, 6, 2), (2, 2, 5)))
    updates = [LowRank(*pair) for pair in zip(left, right, strict=True)]
    x = torch.randn(1, 4, 5, generator=generator).bfloat16()
    output = grouped(updates, {4: [3, 1]})(x)
    assert output.dtype == torch.float32
    dense = torch.stack([left[0] @ right[0]] * 3 + [left[1] @ right[1]])
    torch.testing.assert_close(output[0], (dense @ x[0].float()[..., None])[..., 0])


def test_one_adapter_alone_is_itself() -> None:
    alone = LowRank(torch.ones(3, 1), torch.ones(1, 2))
    assert grouped([alone], {4: [4]}) is alone
