"""Elliptical slice sampling (Murray, Adams and MacKay 2010) of a ``Latent``, one Markov chain in each of P rows.

The Gaussian at the mode is too unsure of a posterior as skewed as that of few examples (Nickisch and Rasmussen 2008).
Chains that start from samples of it are exact after a few steps: they need no step size, and accept every step.

A step moves along an ellipse through where a chain is and a draw of the prior. Scores are linear in both, so that one
product with the kernel's root serves all angles that a step tries.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.latent import CACHED_NUMBERS, Latent, log_likelihood, root
from abmll.posterior.paths import Paths, Rows

READS = (15, 20, 25, 30)  # the steps after which a chain is read: four reads of a chain have half the noise of one
LARGE = 10_000  # examples times options: chains of more are float32, half the bytes to draw and to turn
SHRINKS = 60  # of a step's bracket at most; each takes a third of it away on average


class State(NamedTuple):
    """Where P chains are, or draws of the prior."""

    whitened: Tensor  # (P, N, C) of g + b, standard normal a priori
    weights: Tensor  # (P, S) likewise
    scores: Tensor  # (P, N, C) f without its offset, which is linear in both

    def turned(self, other: "State", angle: Tensor) -> "State":
        """At ``angle`` (P,) from here on the ellipse through ``other``, in the place of this one."""
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        self.weights.mul_(cos).addcmul_(other.weights, sin)
        for mine, theirs in ((self.whitened, other.whitened), (self.scores, other.scores)):
            mine.mul_(cos[..., None]).addcmul_(theirs, sin[..., None])
        return self


def refine(
    latent: Latent,
    index: Tensor,
    answers: Tensor,
    start: Paths,
    lowest: Tensor,
    generator: torch.Generator,
    reads: Sequence[int] = READS,
) -> Paths:
    """Samples of every chain from its ``start``: all chains' after the first of ``reads`` steps, then the next, and on.

    ``index`` (P,) names each chain's hypothesis, neighbours having the same. Weights (P, S) stay at or above
    ``lowest``, in units of their prior's std.
    """
    rows, exact = Rows(index), root(latent.kernel)
    is_large = latent.offset[0].numel() >= LARGE and latent.order is None
    dtype = torch.float32 if is_large else torch.float64
    whitened, weights = rows.times(exact.mT, start.dual).to(dtype), torch.maximum(start.weights, lowest).to(dtype)
    latent = latent._replace(offset=latent.offset.to(dtype), design=latent.design.to(dtype))
    factor, lowest, offset = exact.to(dtype), lowest.to(dtype), latent.offset[index]

    def state(whitened: Tensor, weights: Tensor) -> State:
        scores = rows.mixed(latent.order, rows.times(factor, whitened)) + rows.along(latent.design, weights)
        return State(whitened.contiguous(), weights, scores.contiguous())

    chains = state(whitened, weights)
    here, read = log_likelihood(offset + chains.scores, answers), []
    for step in range(1, max(reads) + 1):
        other = state(*(_normal_like(value, generator) for value in (chains.whitened, chains.weights)))
        angle, here = _slice(chains, other, offset, answers, lowest, here, generator)
        chains = chains.turned(other, angle)
        if step in reads:
            # In float64, as a kernel's root magnifies what rounding leaves of numbers that cancel.
            read.append(Paths(rows.solve_root(exact, chains.whitened.double()), chains.weights.double().clone()))
    return Paths(*(torch.cat(parts) for parts in zip(*read, strict=True)))


def _slice(
    chains: State,
    other: State,
    offset: Tensor,
    answers: Tensor,
    lowest: Tensor,
    here: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Angles (P,) at which the likelihood is above a level drawn below ``here`` (P,), where it is now; and it there."""
    level = here + _uniform_like(here, generator).log()
    angle = 2 * math.pi * _uniform_like(here, generator)
    low, high, found, there = angle - 2 * math.pi, angle, torch.zeros_like(angle), here.clone()
    number, waiting = max(1, CACHED_NUMBERS // offset[0].numel()), torch.arange(len(here))
    for _ in range(SHRINKS):
        left = []
        for some in waiting.split(number):
            values = offset, chains.scores, other.scores, chains.weights, other.weights, lowest, level, angle
            if len(some) < len(here):
                values = tuple(value.index_select(0, some) for value in values)
            first, mine, theirs, own, drawn, least, above, at = values
            cos, sin = at.cos()[:, None], at.sin()[:, None]
            scores = torch.addcmul(first, mine, cos[..., None]).addcmul_(theirs, sin[..., None])
            likely = log_likelihood(scores, answers)
            taken = (likely > above) & (own * cos + drawn * sin >= least).all(-1)
            found.index_copy_(0, some, at)  # stays where it is taken: the others are tried again
            there.index_copy_(0, some, likely)
            left.append(some[~taken])
        waiting = torch.cat(left)
        if not len(waiting):
            return found, there
        low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
        angle = low + (high - low) * _uniform_like(here, generator)
    found[waiting], there[waiting] = 0.0, here[waiting]
    return found, there


def _normal_like(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=generator, dtype=value.dtype)


def _uniform_like(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(value.shape, generator=generator, dtype=value.dtype)
