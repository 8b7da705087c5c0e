"""Elliptical slice sampling (Murray, Adams and MacKay 2010) of a ``Latent``, one Markov chain for each of its rows.

The Gaussian at the mode is too unsure of a posterior as skewed as that of few examples (Nickisch and Rasmussen 2008).
Chains that start from samples of it are exact after a few steps: they need no step size, and accept every step.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.posterior.latent import Latent, Paths, log_likelihood, root

READS = (15, 20, 25, 30)  # the steps after which a chain is read: four reads of a chain have half the noise of one
SHRINKS = 60  # of a step's bracket at most; each takes a third of it away on average


def refine(
    latent: Latent,
    answers: Tensor,
    start: Paths,
    lowest: Tensor,
    generator: torch.Generator,
    reads: Sequence[int] = READS,
) -> Paths:
    """Samples of every chain from its ``start``: all chains' after the first of ``reads`` steps, then the next, and on.

    Weights (P, S) stay at or above ``lowest``, in units of their prior's std.
    """
    factor = root(latent.kernel)
    whitened, weights = factor.mT @ start.dual, torch.maximum(start.weights, lowest)
    here = log_likelihood(latent.scores(factor @ whitened, weights), answers)
    read = []
    for step in range(1, max(reads) + 1):
        other, other_weights = (_normal(value.shape, generator) for value in (whitened, weights))
        level = here + _uniform(here.shape, generator).log()
        angle = 2 * math.pi * _uniform(here.shape, generator)
        low, high, waiting = angle - 2 * math.pi, angle, torch.ones_like(here, dtype=torch.bool)
        found, found_weights = whitened, weights
        for _ in range(SHRINKS):
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            moved = whitened * cos[..., None] + other * sin[..., None]
            moved_weights = weights * cos + other_weights * sin
            there = log_likelihood(latent.scores(factor @ moved, moved_weights), answers)
            taken = waiting & (there > level) & (moved_weights >= lowest).all(-1)
            found = torch.where(taken[:, None, None], moved, found)
            found_weights = torch.where(taken[:, None], moved_weights, found_weights)
            here, waiting = torch.where(taken, there, here), waiting & ~taken
            if not bool(waiting.any()):
                break
            low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
            angle = low + (high - low) * _uniform(here.shape, generator)
        whitened, weights = found, found_weights
        if step in reads:
            read.append(Paths(torch.linalg.solve_triangular(factor.mT, whitened, upper=True), weights))
    return Paths(*(torch.cat(parts) for parts in zip(*read, strict=True)))


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)
