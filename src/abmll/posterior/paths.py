"""Samples of a ``Latent``, many for each of few hypotheses: rows that share their hypothesis's matrices."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.latent import Latent, Solver, curved, root, square_root
from abmll.posterior.mode import Mode, portions
from abmll.posterior.ordinal import Order


class Rows:
    """P rows and the hypothesis of each: rows of one hypothesis that are neighbours are worked on together.

    A copy of an N x N matrix for every row would take more room than all else, and more time to read.
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index
        numbers, counts = index.unique_consecutive(return_counts=True)
        self.numbers, self.counts = numbers.tolist(), counts.tolist()

    def parts(self, value: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every hypothesis with its rows of ``value`` (P, ...)."""
        return zip(self.numbers, value.split_with_sizes(self.counts), strict=True)

    def each(self, act: Callable[[Tensor, Tensor], Tensor], of: Tensor, value: Tensor) -> Tensor:
        """``act`` on what every hypothesis has in ``of`` (H, ...) and its rows of ``value`` (P, ...), put together."""
        own = of.unbind()
        return torch.cat([act(own[number], part) for number, part in self.parts(value)])

    def times(self, matrices: Tensor, value: Tensor) -> Tensor:
        """(P, M, C): ``matrices`` (H, M, N) of the rows' hypotheses times ``value`` (P, N, C)."""
        if matrices.shape[1] <= value.shape[2]:  # to copy them for every row is less than to put its values in order
            return matrices.index_select(0, self.index) @ value
        return self.each(lambda matrix, part: _apart(matrix @ _beside(part), part), matrices, value)

    def solve_root(self, factors: Tensor, value: Tensor) -> Tensor:
        """(P, N, C): F^-T ``value`` (P, N, C) for lower triangular ``factors`` F (H, N, N)."""

        def solve(factor: Tensor, part: Tensor) -> Tensor:
            return _apart(torch.linalg.solve_triangular(factor, _beside(part), upper=True), part)

        return self.each(solve, factors.mT, value)

    def along(self, designs: Tensor, weights: Tensor) -> Tensor:
        """(P, N, C): ``designs`` (H, N, C, S) times ``weights`` (P, S)."""
        flat, (_, rows, options, _) = designs.flatten(1, 2), designs.shape
        if rows <= options:
            found = flat.index_select(0, self.index) @ weights[..., None]
        else:
            found = self.each(lambda design, part: part @ design, flat.mT, weights)
        return found.view(-1, rows, options)

    def onto(self, designs: Tensor, dual: Tensor) -> Tensor:
        """The transpose of ``along``: (P, S) of (P, N, C)."""
        return self.each(lambda design, part: part @ design, designs.flatten(1, 2), dual.flatten(1))

    def mixed(self, order: Order | None, values: Tensor) -> Tensor:
        """(P, N, C) ``values``, of which every label has its own, as those of labels with that ``order``."""
        return values if order is None else order.pick(self.index).mixed(values)


def _beside(rows: Tensor) -> Tensor:
    """(N, P C) of (P, N, C)."""
    return rows.transpose(0, 1).flatten(1)


def _apart(beside: Tensor, like: Tensor) -> Tensor:
    """(P, M, C) of (M, P C), for rows as many as ``like`` has."""
    return beside.view(-1, like.shape[0], like.shape[2]).transpose(0, 1)


class Paths(NamedTuple):
    """Samples of f, one in each of P rows: g + b = kernel dual R^1/2 on the examples, and the scores' weights."""

    dual: Tensor  # (P, N, C)
    weights: Tensor  # (P, S) in units of their prior's standard deviation, from its mean


def sample(latent: Latent, mode: Mode, index: Tensor, generator: torch.Generator) -> Paths:
    """One sample of Laplace's Gaussian for each row of ``index`` (P,): its hypothesis, in rising order.

    Matheron's rule: a sample of the prior, corrected by what a noisy observation of it, whose precision is the
    likelihood's curvature at the mode, says of it.
    """
    rows, probs, factor = Rows(index), mode.probs[index], root(latent.kernel)
    normal, noise = (torch.randn(probs.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(len(index), latent.design.shape[-1], generator=generator, dtype=torch.float64)
    prior = rows.mixed(latent.order, rows.times(factor, normal)) + rows.along(latent.design, weights)
    noise = square_root(probs) * noise
    noise = noise - probs * noise.sum(-1, keepdim=True)  # of covariance diag(p) - p p^T
    dual = mode.dual[index] + _solved(latent, mode, index, noise - curved(probs, prior))
    return Paths(
        rows.mixed(latent.order, dual) + rows.solve_root(factor, normal), rows.onto(latent.design, dual) + weights
    )


def _solved(latent: Latent, mode: Mode, index: Tensor, value: Tensor) -> Tensor:
    """(I + W K)^-1 ``value`` (P, N, C) at the mode."""
    used, place = index.unique(return_inverse=True)
    picked, probs, found = latent.pick(used), mode.probs[used], []
    for portion in portions(picked):
        solver, chosen = Solver(picked.pick(portion), probs[portion]), range(len(used))[portion]
        own = (place >= chosen.start) & (place < chosen.stop)
        rows = Rows(place[own] - chosen.start)
        found += [solver(part, slice(number, number + 1)) for number, part in rows.parts(value[own])]
    return torch.cat(found)
