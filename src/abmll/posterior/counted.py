"""Adapters with noise of a key and a place (``counter``), written so that a compiler sees all of it.

What ``noise`` computes in nodes of its own, to have few operations, is here left to automatic differentiation: a
compiler puts small operations together by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.counter import normals
from abmll.posterior.space import LayerUpdate
from abmll.posterior.stacks import Factors


@dataclass(frozen=True)
class CountedUpdate:
    """As ``LowRankUpdate``: left [right x; ||a x|| u] with a unit vector u for every token."""

    left: Tensor  # (d_out, r + m): factors of the mean, then of the noise
    right: Tensor  # (r, d_in)
    positive_A: Tensor  # a (d_in,)
    drawn: Tensor  # local noise: (R, L, m), along u; shared noise: (d_in, m), diag(a) V
    is_local: bool

    def __call__(self, x: Tensor) -> Tensor:
        """(R, L, d_in) -> (R, L, d_out)."""
        x = x.to(self.right.dtype)
        units = F.normalize(self.drawn if self.is_local else x @ self.drawn, dim=-1)
        least = torch.finfo(x.dtype).tiny  # a token of zeros has the gradient 0
        std = (F.linear(x.square(), self.positive_A.square()[None]) + least).sqrt()
        return F.linear(torch.cat([F.linear(x, self.right), std * units], dim=-1), self.left)


def counted_layers(
    stacks: Sequence[Factors],
    scaling: float,
    kind: Literal["local", "shared"],
    rank: int,
    positions: tuple[int, int],
    key: Tensor,
) -> list[list[LayerUpdate]]:
    """``WeightSpace.noisy_layers`` of all stacks, where sigma has rank 1 and no floor, with noise of ``rank`` above 0.

    ``positions`` are R and L of every layer's input, ``key`` is that of ``normals``. A token's noise depends on its row
    and its position, not on how many there are of either.
    """
    is_local, counts = kind == "local", [len(one.mean_B) for one in stacks]
    shapes = [(len(one.mean_B), 1, one.mean_B.shape[1], rank) for one in stacks]
    if is_local:
        shapes.append((sum(counts), *positions, rank))
    else:
        shapes += [(len(one.mean_A), 1, one.mean_A.shape[2], rank) for one in stacks]
    normal = normals(key, shapes, stacks[0].mean_B.dtype)
    more = normal[-1].split(counts) if is_local else [one[:, 0] for one in normal[len(stacks) :]]
    updates: list[list[LayerUpdate]] = []
    for factors, own, drawn in zip(stacks, normal, more, strict=False):
        left = torch.cat([scaling * factors.mean_B, factors.scale_B.exp() * own[:, 0]], dim=-1)
        positive_A = factors.scale_A.exp()[:, 0]
        drawn = drawn if is_local else positive_A[..., None] * drawn
        layers = zip(left.unbind(), factors.mean_A.unbind(), positive_A.unbind(), drawn.unbind(), strict=True)
        updates.append([CountedUpdate(*layer, is_local) for layer in layers])
    return updates
