"""Layers that read the same tensor, computed together (``shared_input``), by several adapters at once (``stacked``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.numerics import on_host
from abmll.posterior.shared_input import Layers, ReadOnce, alike, beside_each_other
from abmll.posterior.space import LayerUpdate, Noise, Place
from abmll.posterior.stacked import Layout, Shares, sampled_runs
from abmll.posterior.stacks import Factors
from abmll.posterior.weight import WeightSpace


class RunDraws:
    """The directions of local noise of C runs, for all layers of a pass: those that ``Draws`` gives each adapter alone.

    ``together`` names layers in the order in which they are called, all of which see equally many positions: their
    numbers are drawn when the first of them is called. Other layers draw their own.
    """

    def __init__(self, noises: Sequence[Noise], together: Sequence[str]) -> None:
        self.noises, self.together = noises, together
        self.starts = {name: index for index, name in enumerate(together)}
        self.sizes: tuple[int, ...] | None = None
        self.units: Tensor | None = None

    def take(self, names: Sequence[str], shares: Shares, like: Tensor) -> Tensor:
        """(C, P, G, m), vectors of length 1, zero behind a run's end, for layers that are called in this order."""
        if self.units is None and names[0] in self.starts:
            self.sizes, self.units = shares.sizes, self._draw(self.together, shares, like)
        if self.units is not None and shares.sizes == self.sizes and names[0] in self.starts:
            start = self.starts[names[0]]
            return self.units[:, start : start + len(names)].transpose(1, 2)
        return self._draw(names, shares, like).transpose(1, 2)

    def _draw(self, names: Sequence[str], shares: Shares, like: Tensor) -> Tensor:
        """(C, layers, P, m)."""
        rank = self.noises[0].rank
        drawn = like.new_zeros(len(self.noises), len(names), max(shares.sizes), rank)
        for noise, run, size in zip(self.noises, drawn, shares.sizes, strict=True):
            rows = like.new_empty(len(names), size, rank)
            for part in rows if on_host(rows) else [rows]:
                part.normal_(generator=noise.generator)
            run[:, :size] = rows
        return F.normalize(drawn, dim=-1)


@dataclass
class SharedRuns(ReadOnce[Tensor]):
    """The updates by C adapters, each of its own run, of G layers that read the same tensor."""

    left: Tensor  # (C, D, G (r + m)) for the layers' D outputs: all that belongs to means, then all that does to noise
    right: Tensor  # (C, G r, d_in)
    square_A: Tensor  # (C, G, d_in)
    sizes: Sequence[int]  # d_out of every layer
    draws: RunDraws
    layout: Layout

    def compute(self, x: Tensor) -> list[Tensor]:
        """(R, L, d_in) -> G times (R, L, d_out)."""
        flat = x.flatten(0, -2).to(self.right.dtype)
        shares = self.layout[len(flat)]
        units = self.draws.take(self.names, shares, self.right)
        outputs = shares.beside(sampled_runs(shares.apart(flat), self.left, self.right, self.square_A, units))
        return [output.view(*x.shape[:-1], -1) for output in outputs.split(self.sizes, -1)]


def shared_runs(
    space: WeightSpace,
    stacks: Sequence[Factors],
    groups: Mapping[tuple[str, ...], Sequence[Place]],
    noises: Sequence[Noise],
    together: Sequence[str],
    layout: Layout,
) -> dict[str, LayerUpdate]:
    """The updates of all layers in ``groups`` by name, by C adapters whose ``stacks`` are (C, L, ...).

    A group is the names and places of those that share an input; ``noises`` are local, and one for each adapter.
    """
    drawn = [space.low_rank_samples(one, noises) for one in stacks]
    layers = Layers(
        [left.flatten(0, 1).unbind() for left, _, _, _ in drawn],
        [right.flatten(0, 1).unbind() for _, right, _, _ in drawn],
        [a.square().flatten(0, 1)[:, None].unbind() for _, _, a, _ in drawn],
    )
    draws, count = RunDraws(noises, together), len(noises)
    updates: dict[str, LayerUpdate] = {}
    for kind, own in alike(groups).items():
        lengths = {stack: drawn[stack][0].shape[1] for stack in kind}
        each = [
            [(stack, adapter * lengths[stack] + layer) for stack, layer in groups[names]]
            for names in own
            for adapter in range(count)
        ]
        joint = beside_each_other(layers, each)
        sizes = [drawn[stack][0].shape[2] for stack in kind]
        parts = (tensor.unflatten(0, (len(own), count)).unbind() for tensor in joint)
        for names, left, right, square_A in zip(own, *parts, strict=True):
            updates |= SharedRuns(names, left, right, square_A, sizes, draws, layout).updates()
    return updates
