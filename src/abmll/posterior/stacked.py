"""Several adapters on one layer at once, in as many operations as one takes: their factors stacked, their runs as well.

Each adapter updates a run of positions of its own, the runs lying side by side. Beside ``grouped`` this is for few
adapters with many positions each, and for passes with gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.noise import LowRankUpdate
from abmll.posterior.space import LayerUpdate, LowRank, Noise


@dataclass(frozen=True)
class Shares:
    """How M positions are shared out among C runs, of which the longest has P."""

    sizes: tuple[int, ...]
    spread: Tensor | None = None  # (C P,) positions, any one behind a run's end; None where runs are equally long
    gather: Tensor | None = None  # (M,) the way back

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device) -> "Shares":
        """Runs of so many positions."""
        longest = max(sizes)
        if min(sizes) == longest:
            return cls(tuple(sizes))
        counts, places = torch.tensor(sizes)[:, None], torch.arange(longest)
        own = places < counts
        spread = (counts.cumsum(0) - counts + places).masked_fill(~own, 0)
        return cls(tuple(sizes), spread.flatten().to(device), own.flatten().nonzero()[:, 0].to(device))

    def apart(self, x: Tensor) -> Tensor:
        """(M, d) -> (C, P, d)."""
        x = x if self.spread is None else x.index_select(0, self.spread)
        return x.view(len(self.sizes), -1, x.shape[-1])

    def beside(self, x: Tensor) -> Tensor:
        """(C, P, d) -> (M, d)."""
        x = x.flatten(0, 1)
        return x if self.gather is None else x.index_select(0, self.gather)


# The shares by how many positions there are together: a layer may see all of them or a part.
Layout = Mapping[int, Shares]


def can_stack(updates: Sequence[LayerUpdate]) -> bool:
    """Whether ``stacked`` takes them: plain ones, or samples of rank m with a sigma of rank 1, of one shape."""
    plain = [one for one in updates if isinstance(one, LowRank)]
    if len(plain) == len(updates):
        return len({one.left.shape for one in plain}) == 1
    sampled = [one for one in updates if isinstance(one, LowRankUpdate)]
    return len(sampled) == len(updates) and len({(one.left.shape, one.directions is None) for one in sampled}) == 1


def stacked(updates: Sequence[LayerUpdate], layout: Layout) -> LayerUpdate:
    """The update (R, L, d_in) -> (R, L, d_out) in which each of ``updates`` has its run of the R L positions.

    ``can_stack`` holds for them. Gradients reach their tensors, once. Noise is what each draws on its run alone.
    """
    plain = [one for one in updates if isinstance(one, LowRank)]
    if plain:
        return _Plain(torch.stack([one.left for one in plain]), torch.stack([one.right for one in plain]), layout)
    sampled = [one for one in updates if isinstance(one, LowRankUpdate)]
    directions = [one.directions for one in sampled if one.directions is not None]
    return _Sampled(
        torch.stack([one.left for one in sampled]),
        torch.stack([one.right for one in sampled]),
        torch.stack([one.positive_A for one in sampled]),
        torch.stack(directions) if directions else None,
        [one.noise for one in sampled],
        layout,
    )


@dataclass(frozen=True)
class _Plain:
    """``LowRank`` for every run."""

    left: Tensor  # (C, d_out, r)
    right: Tensor  # (C, r, d_in)
    layout: Layout

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).to(self.right.dtype)
        shares = self.layout[len(flat)]
        output = torch.bmm(torch.bmm(shares.apart(flat), self.right.mT), self.left.mT)
        return shares.beside(output).view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class _Sampled:
    """``LowRankUpdate`` for every run."""

    left: Tensor  # (C, d_out, r + m)
    right: Tensor  # (C, r, d_in)
    positive_A: Tensor  # (C, d_in)
    directions: Tensor | None  # (C, d_in, m), shared noise only
    noises: Sequence[Noise]
    layout: Layout

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).to(self.right.dtype)
        shares = self.layout[len(flat)]
        runs = shares.apart(flat)
        if self.directions is None:
            units = shares.apart(F.normalize(self._normal(flat, shares), dim=-1))
        else:
            units = F.normalize(torch.bmm(runs, self.directions), dim=-1)
        output = cast(Tensor, _LowRankSamples.apply(runs, self.left, self.right, self.positive_A, units))
        return shares.beside(output).view(*x.shape[:-1], -1)

    def _normal(self, flat: Tensor, shares: Shares) -> Tensor:
        """(M, m): what every noise draws for its own run."""
        normal = flat.new_empty(len(flat), self.noises[0].rank)
        for noise, run in zip(self.noises, normal.split(shares.sizes), strict=True):
            run.normal_(generator=noise.generator)
        return normal


class _LowRankSamples(torch.autograd.Function):
    """left [right x; ||a x|| u] for every run, in one node; differentiable once."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        x, left, right, a, units = args
        std = torch.bmm(x.square(), a.square()[..., None]).sqrt_()
        joint = torch.cat([torch.bmm(x, right.mT), std * units], dim=-1)
        ctx.save_for_backward(x, left, right, a, units, std, joint)
        return torch.bmm(joint, left.mT)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        x, left, right, a, units, std, joint = ctx.saved_tensors
        [gradient] = grad_outputs
        by_mean, by_noise = torch.bmm(gradient, left).split([right.shape[1], units.shape[-1]], dim=-1)
        share = (by_noise * units).sum(-1, keepdim=True) / std.clamp_min(torch.finfo(std.dtype).tiny)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = torch.bmm(by_mean, right).addcmul_(x, share * a.square()[:, None])
        by_a = a * torch.bmm(share.mT, x.square())[:, 0]
        by_units = std * by_noise if ctx.needs_input_grad[4] else None
        return by_x, torch.bmm(gradient.mT, joint), torch.bmm(by_mean.mT, x), by_a, by_units
