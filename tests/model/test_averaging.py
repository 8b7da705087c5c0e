"""The average of updates, against dense averages and their singular value decomposition."""

import pytest
import torch

from abmll.language.adapter import Adapter
from abmll.model.interchange import average_update
from abmll.posterior import Factors


def adapter(seed: int, scale: float = 1.0, near: Adapter | None = None) -> Adapter:
    """Two layers of one shape and one of another, r = 3; moved by ``scale`` from ``near``."""
    generator = torch.Generator().manual_seed(seed)
    stacks = {}
    for shape, (count, d_out, d_in) in {"20x17": (2, 20, 17), "6x30": (1, 6, 30)}.items():
        sizes = ((count, 3, d_in), (count, d_out, 3), (count, 1, d_in), (count, d_out, 1))
        drawn = [scale * torch.randn(size, generator=generator) for size in sizes]
        if near is not None:
            drawn = [one + other for one, other in zip(drawn, near.stacks[shape], strict=True)]
        stacks[shape] = Factors(*drawn)
    return Adapter(stacks, {"20x17": ("one", "two"), "6x30": ("three",)})


def update(phi: Adapter) -> dict[str, torch.Tensor]:
    return {name: layer.mean_B.double() @ layer.mean_A.double() for name, layer in phi.by_layer().items()}


def test_it_is_the_nearest_update_of_the_members_rank() -> None:
    members = [adapter(seed) for seed in range(4)]
    average, off = average_update(members)
    lost, whole = 0.0, 0.0
    for name, found in update(average).items():
        dense = sum((update(member)[name] for member in members), torch.zeros(())) / 4
        left, values, right = torch.linalg.svd(dense)
        torch.testing.assert_close(found, left[:, :3] * values[:3] @ right[:3], rtol=1e-5, atol=1e-5)
        lost, whole = lost + values[3:].square().sum().item(), whole + values.square().sum().item()
    assert off == pytest.approx((lost / whole) ** 0.5, rel=1e-6)
    assert 0.2 < off < 1


def test_members_that_moved_little_from_one_start_lose_little() -> None:
    start = adapter(7)
    near, far = (average_update([adapter(seed, scale, start) for seed in range(5)])[1] for scale in (0.01, 0.1))
    assert 0 < 50 * near < far < 0.05  # of second order in what they moved


def test_equal_members_and_one_alone_lose_nothing() -> None:
    one = adapter(0)
    average, off = average_update([one, one.clone(), one.clone()])
    for found, wanted in zip(update(average).values(), update(one).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert off < 1e-7
    assert average_update([one]) == (one, 0.0)


def test_updates_that_are_zero_stay_zero() -> None:
    members = [adapter(seed) for seed in range(2)]
    for member in members:
        for stack in member.stacks.values():
            stack.mean_B.zero_()
    average, off = average_update(members)
    assert off == 0.0
    assert all(not found.any() for found in update(average).values())
