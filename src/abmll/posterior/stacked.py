"""Several adapters on one layer at once, in as many operations as one takes: their factors stacked, their runs as well.

Each adapter updates a run of positions of its own, the runs lying side by side. Beside ``run_samples`` this is for few
adapters with many positions each, and for passes with gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.space import LayerUpdate, Noise, Space
from abmll.posterior.stacks import Factors
from abmll.posterior.weight import WeightSpace


@dataclass(frozen=True)
class Shares:
    """How M positions are shared out among C runs, of which the longest has P."""

    sizes: tuple[int, ...]
    spread: Tensor | None = None  # (C P,) positions, any one behind a run's end; None where M is C P
    gather: Tensor | None = None  # (M,) the way back

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device, filled: bool = False) -> "Shares":
        """Runs of so many positions; ``filled``: behind each there are more, of no meaning, up to P."""
        longest = max(sizes)
        if filled or min(sizes) == longest:
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


def can_stack(space: Space, noise: Noise | None) -> bool:
    """Whether ``stacked_layers`` has an update of that ``space`` under such noise."""
    if noise is None:
        return True
    if isinstance(space, WeightSpace):
        return space.has_low_rank_samples(noise)
    return space.sample_components == 0 and noise.kind == "shared"


def stacked_layers(
    space: Space, factors: Factors, noises: Sequence[Noise | None], layout: Layout
) -> Sequence[LayerUpdate]:
    """Of each of L layers the update (R, L, d_in) -> (R, L, d_out) by which C adapters act, each on its own run.

    ``factors`` are those of a stack, (C, L, ...); gradients reach them, once. ``can_stack`` holds for each of the C
    ``noises``, and all are of one kind, which is not local (``shared_runs``). Each draws what it draws for its adapter
    alone.
    """
    drawn = [noise for noise in noises if noise is not None]
    if not drawn:
        pairs = zip((space.scaling * factors.mean_B).unbind(1), factors.mean_A.unbind(1), strict=True)
        return [_Plain(left, right, layout) for left, right in pairs]
    if isinstance(space, WeightSpace):
        left, right, positive_A, directions = space.low_rank_samples(factors, drawn)
        assert directions is not None, "local noise is for ``shared_runs``"
        stack = zip(left.unbind(1), right.unbind(1), positive_A.unbind(1), directions.unbind(1), strict=True)
        return [_Sampled(*layer, layout) for layer in stack]
    samples = [space.plain_sample(own, 0, noise.generator) for own, noise in zip(factors.unbind(), drawn, strict=True)]
    lefts, rights = (torch.stack(side, 1).unbind() for side in zip(*samples, strict=True))
    return [_Plain(left, right, layout) for left, right in zip(lefts, rights, strict=True)]


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
    """``LowRankUpdate`` for every run, with shared noise."""

    left: Tensor  # (C, d_out, r + m)
    right: Tensor  # (C, r, d_in)
    positive_A: Tensor  # (C, d_in)
    directions: Tensor  # (C, d_in, m)
    layout: Layout

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).to(self.right.dtype)
        shares = self.layout[len(flat)]
        runs = shares.apart(flat)
        units = F.normalize(torch.bmm(runs, self.directions), dim=-1)
        square_A = self.positive_A.square()[:, None]
        output = sampled_runs(runs, self.left, self.right, square_A, units[:, :, None])
        return shares.beside(output).view(*x.shape[:-1], -1)


def sampled_runs(x: Tensor, left: Tensor, right: Tensor, square_A: Tensor, units: Tensor) -> Tensor:
    """Outputs (C, P, D) of G layers together for one input x (C, P, d_in), by an adapter for every run.

    As ``sampled_outputs``: left (C, D, G (r + m)) has the columns of all means, then those of all noises; right is
    (C, G r, d_in), square_A (C, G, d_in) is a^2, and units are (C, P, G, m). Differentiable once.
    """
    return cast(Tensor, _LowRankSamples.apply(x, left, right, square_A, units))


class _LowRankSamples(torch.autograd.Function):
    """left [right x; ||a x|| u] for every run, in one node."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        x, left, right, square_A, units = args
        std = torch.bmm(x.square(), square_A.mT).sqrt_()
        joint = torch.cat([torch.bmm(x, right.mT), (std[..., None] * units).flatten(2)], dim=-1)
        ctx.save_for_backward(x, left, right, square_A, units, std, joint)
        return torch.bmm(joint, left.mT)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what was computed on the way is a constant here
            raise NotImplementedError("the update of several adapters at once is differentiable only once")
        x, left, right, square_A, units, std, joint = ctx.saved_tensors
        [gradient] = grad_outputs
        by_joint, rank = torch.bmm(gradient, left), right.shape[1]
        by_mean, by_noise = by_joint[..., :rank], by_joint[..., rank:].view(units.shape)
        share = (by_noise * units).sum(-1) / std.clamp_min(torch.finfo(std.dtype).tiny)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = torch.bmm(by_mean, right).addcmul_(x, torch.bmm(share, square_A))
        by_square = torch.bmm(share.mT, x.square()).mul_(0.5)
        by_units = std[..., None] * by_noise if ctx.needs_input_grad[4] else None
        return by_x, torch.bmm(gradient.mT, joint), torch.bmm(by_mean.mT, x), by_square, by_units
