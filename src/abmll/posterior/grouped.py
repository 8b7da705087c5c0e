"""Several adapters on one layer at once: each updates a run of positions of its own, the runs lying side by side.

A product of a few dozen positions is little more than a call. So squares, roots and lengths are taken of all positions
together, and only the products, each with an adapter's own matrix, run by run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.posterior.space import LayerUpdate, LowRank

# How many positions each adapter has, by how many there are together: a layer may see all of them or a part.
Runs = Mapping[int, Sequence[int]]


def grouped(updates: Sequence[LayerUpdate], runs: Runs) -> LayerUpdate:
    """The update (R, L, d_in) -> (R, L, d_out) in which each of ``updates`` has its run of the R L positions.

    For passes without gradients. None of them may draw noise by the token.
    """
    if len(updates) == 1:
        return updates[0]
    plain = [one for one in updates if isinstance(one, LowRank)]
    if len(plain) == len(updates) and _are_alike([one.left for one in plain]):
        return _Plain([one.left.mT for one in plain], [one.right.mT for one in plain], runs)
    return _Apart(updates, runs)


@dataclass(frozen=True)
class _Plain:
    """``LowRank``, run by run."""

    lefts: Sequence[Tensor]  # (r, d_out) each
    rights: Sequence[Tensor]  # (d_in, r) each
    runs: Runs

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).to(self.rights[0].dtype)
        sizes = self.runs[len(flat)]
        output = run_products(run_products(flat, self.rights, sizes), self.lefts, sizes)
        return output.view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class _Apart:
    """Any updates, each called on its run."""

    updates: Sequence[LayerUpdate]
    runs: Runs

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        parts = zip(self.updates, flat.split(list(self.runs[len(flat)])), strict=True)
        return torch.cat([update(part) for update, part in parts]).view(*x.shape[:-1], -1)


def _are_alike(matrices: Sequence[Tensor]) -> bool:
    return len({matrix.shape for matrix in matrices}) == 1


def run_products(x: Tensor, matrices: Iterable[Tensor], sizes: Sequence[int]) -> Tensor:
    """(M, a) -> (M, b): each run of rows times its own matrix (a, b)."""
    matrices = list(matrices)
    output = x.new_empty(len(x), matrices[0].shape[1])
    for run, matrix, result in zip(x.split(list(sizes)), matrices, output.split(list(sizes)), strict=True):
        torch.mm(run, matrix, out=result)
    return output
