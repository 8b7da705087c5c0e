"""Samples of many adapters at once, each on a run of few positions, in as little more than one adapter's as can be.

The random numbers of a sample belong to its noise, whatever the adapter: they are drawn once for all adapters under
that noise. What an adapter makes of them is made layer by layer, where it is used and still in the processor's cache.
Layers that read the same tensor (``shared_input``) share its squares, and one product with all of their right factors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.grouped import Runs, run_products
from abmll.posterior.noise import draw
from abmll.posterior.shared_input import ReadOnce
from abmll.posterior.space import LayerUpdate, Noise
from abmll.posterior.stacks import Factors
from abmll.posterior.weight import WeightSpace


class Normals(NamedTuple):
    """Standard normal numbers for K samples of a layer."""

    left: Tensor  # (K, m, d_out)
    right: Tensor  # (K, m, d_in)


@dataclass
class RunSamples(ReadOnce):
    """The updates by C adapters of G layers that read the same tensor: ``LowRankUpdate`` with shared noise."""

    adapters: Sequence[Sequence[Factors]]  # C times G, each of rank r
    normals: Sequence[Normals]  # of every layer
    which: Tensor | slice  # (C,) the sample that each adapter takes; a slice where there is only one
    scaling: float
    runs: Runs

    def compute(self, x: Tensor) -> list[Tensor]:
        """(R, L, d_in) -> G times (R, L, d_out), in the factors' dtype."""
        right, square_A = self._right()
        flat, rank = x.flatten(0, -2).to(right.dtype), len(self.adapters[0][0].mean_A)
        sizes = self.runs[len(flat)]
        joint = run_products(flat, right.flatten(1, 2).mT, sizes).unflatten(1, right.shape[1:3])
        std = run_products(flat.square(), square_A.mT, sizes).sqrt_()
        images = joint[..., rank:]
        images.copy_(std[..., None] * F.normalize(images, dim=-1))
        outputs = [run_products(own, self._left(layer), sizes) for layer, own in enumerate(joint.unbind(1))]
        return [output.view(*x.shape[:-1], -1) for output in outputs]

    def _right(self) -> tuple[Tensor, Tensor]:
        """(C, G, r + m, d_in), the mean's and then the noise's; a^2 (C, G, d_in)."""
        layers, shape = [layer for own in self.adapters for layer in own], (len(self.adapters), len(self.names))
        means = torch.stack([layer.mean_A for layer in layers]).unflatten(0, shape)
        positive_A = torch.stack([layer.scale_A for layer in layers]).unflatten(0, shape).exp()
        normal = torch.stack([own.right[self.which] for own in self.normals], 1)
        return _beside(means, positive_A, normal), positive_A[:, :, 0].square()

    def _left(self, layer: int) -> Tensor:
        """(C, r + m, d_out) of one of the G layers, likewise."""
        means = self.scaling * torch.stack([own[layer].mean_B for own in self.adapters])
        positive_B = torch.stack([own[layer].scale_B for own in self.adapters]).exp()
        return _beside(means.mT, positive_B.mT, self.normals[layer].left[self.which])


def run_samples(
    space: WeightSpace,
    adapters: Sequence[Mapping[str, Factors]],
    stacks: Iterable[Sequence[str]],
    groups: Iterable[tuple[str, ...]],
    noises: Sequence[Noise | None],
    runs: Runs,
) -> dict[str, LayerUpdate]:
    """The updates of all layers by name, by C adapters of ``space``, for passes without gradients.

    ``stacks`` are the names of layers of one shape, in the adapters' order, and a group those that read one tensor.
    Noise is shared, and all of it of one rank above 0. Adapters with the very same one have the same sample; at least
    one has some, and those without are at their means.
    """
    distinct = {id(noise): noise for noise in noises}
    places = {key: place for place, key in enumerate(distinct)}
    which, device = slice(None), next(iter(adapters[0].values())).mean_A.device
    if len(distinct) > 1:
        which = torch.tensor([places[id(noise)] for noise in noises], device=device)
    normals: dict[str, Normals] = {}
    for names in stacks:
        normals |= zip(names, _drawn(adapters[0][names[0]], len(names), list(distinct.values())), strict=True)
    updates: dict[str, LayerUpdate] = {}
    for names in groups:
        layers = [[own[name] for name in names] for own in adapters]
        group = RunSamples(names, layers, [normals[name] for name in names], which, space.scaling, runs)
        updates |= group.updates()
    return updates


def _drawn(like: Factors, count: int, noises: Sequence[Noise | None]) -> list[Normals]:
    """The numbers of ``count`` layers of one shape, drawn in the order of ``WeightSpace.noisy_layers``."""
    rank = max(noise.rank for noise in noises if noise is not None)
    sides: tuple[list[Tensor], list[Tensor]] = [], []
    for noise in noises:
        for side, size in zip(sides, (like.mean_B.shape[0], like.mean_A.shape[1]), strict=True):
            shape = count, size, rank
            side.append(like.mean_A.new_zeros(shape) if noise is None else draw(shape, like.mean_A, noise.generator))
    left, right = (torch.stack(side, 1).mT.contiguous().unbind() for side in sides)
    return [Normals(*layer) for layer in zip(left, right, strict=True)]


def _beside(means: Tensor, positive: Tensor, normal: Tensor) -> Tensor:
    """(..., r, d), (..., 1, d), (..., m, d) -> (..., r + m, d): the means, then ``positive`` times ``normal``."""
    rank, total = means.shape[-2], means.shape[-2] + normal.shape[-2]
    whole = means.new_empty(*means.shape[:-2], total, means.shape[-1])
    whole[..., :rank, :] = means
    torch.mul(positive, normal, out=whole[..., rank:, :])
    return whole
