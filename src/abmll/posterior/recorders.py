"""Layers of output space that leave what they read of their input: the divergence of a pass starts from there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.draws import Draws
from abmll.posterior.noise import draw, random_units
from abmll.posterior.shared_input import ReadOnce, alike, gathered
from abmll.posterior.space import Noise, Place
from abmll.posterior.tokenwise import Run, parts, perturbed


class Recorded(NamedTuple):
    """What a layer adds to its output (R, L, d_out), and all that its Gaussians need of its input (R, L, c)."""

    output: Tensor
    coefficients: Tensor


Record = Callable[[Tensor], Recorded]  # of an input (R, L, d_in)


class Recording(NamedTuple):
    """A stack of L layers that record."""

    mean_B: Tensor  # (L, r, d_out), times s
    half_B: Tensor  # (L, r, d_out), scale_B times s / 2
    right: Tensor  # (L, c, d_in): what is multiplied by the input, mean_A first, scale_A from c / 2 on


@dataclass(frozen=True)
class Recorder:
    """One layer, which draws its own noise."""

    mean_B: Tensor  # (r, d_out), times s
    half_B: Tensor  # (r, d_out), scale_B times s / 2
    right: Tensor  # (c, d_in): what is multiplied by the input, mean_A first, scale_A from c / 2 on
    sigma: float  # at an input of zero
    noise: Noise | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.record(x).output

    def coefficients(self, x: Tensor) -> Tensor:
        """(R, L, d_in) -> (R, L, c)."""
        return F.linear(x.to(self.right.dtype), self.right)

    def record(self, x: Tensor) -> Recorded:
        """Output and coefficients, both in the factors' dtype."""
        if self.noise is None:
            coefficients = self.coefficients(x)
            return Recorded(coefficients[..., : len(self.mean_B)] @ self.mean_B, coefficients)
        x, run = x.to(self.right.dtype), (self.mean_B[None], self.half_B[None])
        [output], [coefficients] = perturbed(x.flatten(0, -2), self.right, self._normal(x, self.noise), [run])
        return Recorded(output.view(*x.shape[:-1], -1), coefficients.view(*x.shape[:-1], -1))

    def _normal(self, x: Tensor, noise: Noise) -> Tensor:
        """(R, L, d_out) with standard deviation ``sigma``; the same for all tokens of a row where they share it."""
        (num_rows, num_tokens, _), d_out = x.shape, self.mean_B.shape[1]
        if noise.kind == "shared" or not noise.rank:
            drawn = draw((num_rows, 1 if noise.kind == "shared" else num_tokens, d_out), x, noise.generator)
            return drawn.mul_(self.sigma).expand(num_rows, num_tokens, d_out)
        normal = draw((d_out, noise.rank), x, noise.generator)
        return F.linear(random_units(x, noise), normal.mul_(self.sigma))


@dataclass
class SharedRecorder(ReadOnce[Recorded]):
    """Layers that read the same tensor, under local noise of some rank; the outputs are in the input's dtype."""

    right: Tensor  # (G c, d_in)
    runs: Sequence[Run]  # of the layers of one shape that follow each other
    sigma: float
    draws: Draws

    def compute(self, x: Tensor) -> list[Recorded]:
        flat = x.flatten(0, -2)
        outputs, coefficients = perturbed(flat, self.right, self._normal(len(flat)), self.runs)
        shape = x.shape[:-1]
        return [Recorded(*(one.view(*shape, -1) for one in pair)) for pair in zip(outputs, coefficients, strict=True)]

    def _normal(self, num_tokens: int) -> Tensor:
        """Of all layers, as their outputs lie in memory."""
        drawn, units = self.draws.take(self.names, num_tokens, self.right)
        shapes = [(len(mean_B), mean_B.shape[2]) for mean_B, _ in self.runs]
        normal = self.right.new_empty(num_tokens * sum(number * d_out for number, d_out in shapes))
        sizes = [number * (d_out + num_tokens) for number, d_out in shapes]
        rows = drawn.split(sizes), units.split(sizes), parts(normal, num_tokens, self.runs)
        for (number, d_out), channels, tokens, part in zip(shapes, *rows, strict=True):
            token, channel = (one.unflatten(0, (number, -1)) for one in (tokens, channels))
            part.baddbmm_(token[:, d_out:], channel[:, :d_out].mT, beta=0, alpha=self.sigma)
        return normal


def shared_recorders(
    stacks: Sequence[Recording], groups: Mapping[tuple[str, ...], Sequence[Place]], sigma: float, draws: Draws
) -> dict[str, Record]:
    """All layers in ``groups`` by name; a group is the names and places of those that share an input.

    Groups of the same shapes are put together at once, whatever their number.
    """
    mean_B, half_B, right = ([getattr(stack, name).unbind() for stack in stacks] for name in Recording._fields)
    recorders: dict[str, Record] = {}
    for kind, own in alike(groups).items():
        places = [groups[names] for names in own]
        sizes = [len(list(run)) for _, run in groupby(kind)]
        runs = [
            tuple(gathered(each, [group[stop - size : stop] for group in places]).unbind() for each in (mean_B, half_B))
            for size, stop in zip(sizes, accumulate(sizes), strict=True)
        ]
        rights = gathered(right, places).flatten(1, 2).unbind()
        for index, names in enumerate(own):
            own_runs = [(means[index], halves[index]) for means, halves in runs]
            recorders |= SharedRecorder(names, rights[index], own_runs, sigma, draws).updates()
    return recorders
