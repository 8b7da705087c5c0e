"""Laplace's approximation: where the posterior of a ``Latent`` is highest, and the evidence there.

With f = offset + A z, z standard normal and A A^T = K the prior's covariance, Newton's steps solve

    (I + A^T W A) step = A^T (y - p) - z

y being the answers and p their probabilities. No eigenvalue of that matrix is below 1 and few are far above, so that
conjugate gradients solve it by some tens of products with A and A^T. A factor (``Solver``) costs C N of them; it is
needed once, at the mode, for the evidence (Nocedal and Wright 2006, section 7.1).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.latent import CACHED_NUMBERS, Latent, Solver, curved, log_likelihood, precision, root

NEWTON_STEPS = 60
HALVINGS = 40  # of a step: where scores are hundreds of nats apart there is hardly a curvature, and it leads far off
CLOSE, WORSE = 1e-12, 1e-9  # nats: what a last step still promises; what rounding may take away
GRADIENTS = 200  # steps of conjugate gradients for one of Newton's
JITTERS = (1e-13, 1e-11, 1e-9)  # times the kernel's mean diagonal: the least that it can be factored with


class Mode(NamedTuple):
    """Where the posterior of f is highest, f = offset + covariance dual, and the evidence there."""

    dual: Tensor  # (H, N, C)
    log_evidence: Tensor  # (H,) log p(answers), by Laplace's approximation
    probs: Tensor  # (H, N, C)
    small: Tensor  # (H, S, S) the inverse of the covariance of the scores' weights

    @classmethod
    def at(cls, latent: Latent, answers: Tensor, dual: Tensor) -> "Mode":
        """The mode that is at ``dual``."""
        scores = latent.offset + latent.times(dual)
        probs = torch.softmax(scores, -1)
        log_det, small = precision(latent, probs)
        height = log_likelihood(scores, answers) - 0.5 * (dual * latent.times(dual)).sum((-1, -2))
        return cls(dual, height - 0.5 * log_det, probs, small)

    def pick(self, index: Tensor) -> "Mode":
        """The hypotheses at ``index``, one a row."""
        return Mode(*(part[index] for part in self))


class White:
    """A and A^T for H hypotheses; z are (H, N C + S) numbers, those of g + b before those of the scores' weights."""

    def __init__(self, latent: Latent) -> None:
        self.latent, self.factor = latent, _root(latent.kernel)

    def out(self, at: Tensor) -> Tensor:
        """A z: (H, N, C)."""
        shape = self.latent.offset.shape
        values, weights = at.split([shape[1] * shape[2], self.latent.design.shape[-1]], -1)
        return self.latent.mixed(self.factor @ values.view(shape)) + self.latent.along(weights)

    def back(self, dual: Tensor) -> Tensor:
        """A^T of (H, N, C)."""
        return torch.cat([(self.factor.mT @ self.latent.mixed(dual)).flatten(1), self.latent.onto(dual)], -1)


def _root(kernel: Tensor) -> Tensor:
    """Cholesky's factor, with as little as it takes on the diagonal."""
    scale, one = kernel.diagonal(dim1=-2, dim2=-1).mean(-1), torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    for jitter in JITTERS:
        factor, info = torch.linalg.cholesky_ex(kernel + jitter * scale[:, None, None] * one)
        if not bool(info.any()):
            return factor
    return root(kernel)


def portions(latent: Latent) -> Iterator[slice]:
    """Which hypotheses are solved together: those whose blocks are no more than ``CACHED_NUMBERS`` numbers, or one."""
    count, size, options = latent.offset.shape
    number = max(1, CACHED_NUMBERS // (options * size * size))
    return (slice(start, start + number) for start in range(0, count, number))


def find_mode(latent: Latent, answers: Tensor) -> Mode:
    """Laplace's approximation for every hypothesis."""
    parts = map(latent.pick, portions(latent))
    found = [Mode.at(part, answers, _climb(part, answers)) for part in parts]
    return Mode(*(torch.cat(several) for several in zip(*found, strict=True)))


def _climb(latent: Latent, answers: Tensor) -> Tensor:
    """The dual of the mode. Newton's steps are halved where they lead uphill."""
    white = White(latent)
    hot = torch.nn.functional.one_hot(answers, latent.offset.shape[-1]).to(latent.offset.dtype)
    moved, at = latent.offset, torch.zeros_like(white.back(hot.expand(latent.offset.shape)))
    here, better = log_likelihood(moved, answers), torch.ones(len(moved), dtype=torch.bool)
    for _ in range(NEWTON_STEPS):
        probs = torch.softmax(moved, -1)
        slope = white.back(hot - probs) - at
        step = _step(white, probs, slope)
        along, share, before = white.out(step), torch.ones_like(here), here
        for _ in range(HALVINGS):
            there = log_likelihood(moved + share[:, None, None] * along, answers)
            there = there - 0.5 * (at + share[:, None] * step).square().sum(-1)
            better = there >= before - WORSE
            here = torch.where(better, there, before)
            share = torch.where(better, share, share / 2)
            if bool(better.all()):
                break
        share = torch.where(better, share, 0.0)
        at, moved = at + share[:, None] * step, moved + share[:, None, None] * along
        if float((slope * step).sum(-1).max()) < CLOSE:
            break
    return hot - torch.softmax(moved, -1)  # where the gradient is zero


def _step(white: White, probs: Tensor, slope: Tensor) -> Tensor:
    """Newton's step, (H, N C + S), from the objective's gradient ``slope``.

    So exact that the errors of Newton's method still fall faster than geometrically: the nearer the mode, the more so.
    """
    left, along, step = slope, slope, torch.zeros_like(slope)
    size = slope.square().sum(-1)
    least = size * size.clamp(max=0.01)
    for _ in range(GRADIENTS):
        waiting = size > least
        if not bool(waiting.any()):
            break
        bent = along + white.back(curved(probs, white.out(along)))
        by = torch.where(waiting, size / (along * bent).sum(-1), 0.0)[:, None]
        step, left = step + by * along, left - by * bent
        size, before = torch.where(waiting, left.square().sum(-1), size), size
        along = left + torch.where(waiting, size / before, 0.0)[:, None] * along
    return step


def at_mode(latent: Latent, answers: Tensor) -> Mode:
    """``find_mode`` with the gradient of everything with respect to ``latent``.

    At the mode Newton's step depends on where it starts in second order only, so that the derivative of one step from
    there is that of the mode (the implicit function theorem).
    """
    with torch.no_grad():
        dual = torch.cat([_climb(latent.pick(part), answers) for part in portions(latent)])
    hot = torch.nn.functional.one_hot(answers, latent.offset.shape[-1]).to(latent.offset.dtype)
    probs = torch.softmax(latent.offset + latent.times(dual), -1)
    dual = Solver(latent, probs)(curved(probs, latent.times(dual)) + hot - probs)
    return Mode.at(latent, answers, dual)
