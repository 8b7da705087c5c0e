"""The random numbers of local noise for all layers of a pass, drawn and brought to length together.

They are the very numbers that each layer would draw when its turn came (on a GPU, where one call draws them all, others
of the same distribution).
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.numerics import on_host


class Draws:
    """Vectors of m standard normal numbers for the layers of one pass, the same however often they are asked for.

    ``channels`` says how many vectors a layer needs besides one for each of its positions, and ``together`` names
    layers in the order in which they are called, all of which see equally many positions: their numbers are drawn when
    the first of them is called. Any other layer, and one that sees another number of positions, draws its own.
    """

    def __init__(
        self, generator: torch.Generator, rank: int, channels: Mapping[str, int], together: Sequence[str]
    ) -> None:
        self.generator, self.rank, self.channels, self.together = generator, rank, channels, together
        self.positions: int | None = None
        self.starts: dict[str, int] = {}  # of each layer among the rows that are drawn together
        self.rows: tuple[Tensor, Tensor] | None = None
        self.own: dict[Sequence[str], tuple[Tensor, Tensor]] = {}

    def take(self, names: Sequence[str], positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(n, m) twice, as drawn and with every row of length 1: the rows of layers that are called in this order.

        A layer's ``channels`` come first, then its ``positions``. In the dtype and on the device of ``like``.
        """
        if self.rows is None and names[0] in self.together:
            sizes = [self.channels[name] + positions for name in self.together]
            self.starts = dict(zip(self.together, accumulate(sizes, initial=0), strict=False))
            self.positions, self.rows = positions, self._draw(self.together, positions, like)
        if self.rows is not None and positions == self.positions and names[0] in self.starts:
            start, size = self.starts[names[0]], sum(self.channels[name] + positions for name in names)
            return self.rows[0][start : start + size], self.rows[1][start : start + size]
        if names not in self.own:
            self.own[names] = self._draw(names, positions, like)
        return self.own[names]

    def _draw(self, names: Sequence[str], positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [size for name in names for size in (self.channels[name], positions) if size]
        rows = like.new_empty(sum(sizes), self.rank)
        for part in rows.split(sizes) if on_host(rows) else [rows]:
            part.normal_(generator=self.generator)
        return rows, F.normalize(rows, dim=-1)
