"""Adapters on layers that read the same tensor, such as a block's queries, keys and values, computed together.

A step of a small model takes as long as its operations take to queue. So what the layers have in common is done once:
the input's precision and squares, the products with their right factors, and all of the way back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from abmll.posterior.draws import Draws
from abmll.posterior.noise import sampled_outputs, smallest
from abmll.posterior.space import LayerUpdate, Place

T = TypeVar("T")


class Sampled(NamedTuple):
    """A stack of L layers with sigma of rank 1, and noise of rank m drawn."""

    left: Tensor  # (L, d_out, r + m): factors of the mean, then of the noise
    right: Tensor  # (L, r, d_in)
    square_A: Tensor  # (L, m, d_in): a^2, m times the same


@dataclass
class ReadOnce(Generic[T]):
    """The updates of layers ``names`` that read the same tensor: computed when the first of them is called."""

    names: tuple[str, ...]
    seen: Tensor | None = field(default=None, init=False)
    outputs: dict[int, T] = field(default_factory=dict, init=False)  # by layer, until they are asked for

    def compute(self, x: Tensor) -> Sequence[T]:
        """(R, L, d_in) -> (R, L, d_out) of every layer, in the input's dtype."""
        raise NotImplementedError

    def updates(self) -> dict[str, Callable[[Tensor], T]]:
        """The layers' own updates, by name."""
        return {name: partial(self._of, index) for index, name in enumerate(self.names)}

    def _of(self, index: int, x: Tensor) -> T:
        if self.seen is not x or index not in self.outputs:
            self.seen, self.outputs = x, dict(enumerate(self.compute(x)))
        output = self.outputs.pop(index)
        if not self.outputs:
            self.seen = None
        return output


@dataclass
class SharedInput(ReadOnce[Tensor]):
    """The updates of G layers by one adapter."""

    left: Tensor  # (D, G (r + m)) for the layers' D outputs: all that belongs to means, then all that does to noise
    right: Tensor  # (G r, d_in)
    square_A: Tensor  # (G m, d_in)
    least: Tensor  # see ``sampled_outputs``
    sizes: Sequence[int]  # d_out of every layer
    draws: Draws

    def compute(self, x: Tensor) -> list[Tensor]:
        """(R, L, d_in) -> (R, L, d_out) of every layer, in the input's dtype."""
        flat = x.flatten(0, -2)
        _, rows = self.draws.take(self.names, len(flat), self.right)
        units = rows.view(len(self.names), len(flat), -1).transpose(0, 1)
        outputs = sampled_outputs(flat, self.left, self.right, self.square_A, units, self.least, self.sizes)
        return [output.view(*x.shape[:-1], -1) for output in outputs]


def shared_inputs(
    stacks: Sequence[Sampled], groups: Mapping[tuple[str, ...], Sequence[Place]], draws: Draws
) -> dict[str, LayerUpdate]:
    """The updates of all layers in ``groups`` by name; a group is the names and places of those that share an input.

    Groups of the same shapes are put together at once, whatever their number.
    """
    layers = Layers(
        [stack.left.unbind() for stack in stacks],
        [stack.right.unbind() for stack in stacks],
        [stack.square_A.unbind() for stack in stacks],
    )
    least = smallest(stacks[0].right)
    updates: dict[str, LayerUpdate] = {}
    for kind, own in alike(groups).items():
        joint = beside_each_other(layers, [groups[names] for names in own])
        sizes = [stacks[stack].left.shape[1] for stack in kind]
        for names, left, right, square_A in zip(own, *(tensor.unbind() for tensor in joint), strict=True):
            updates |= SharedInput(names, left, right, square_A, least, sizes, draws).updates()
    return updates


def alike(groups: Mapping[tuple[str, ...], Sequence[Place]]) -> dict[tuple[int, ...], list[tuple[str, ...]]]:
    """The groups by the stacks that their layers are in: those of one kind have the same shapes."""
    kinds: dict[tuple[int, ...], list[tuple[str, ...]]] = {}
    for names, places in groups.items():
        kinds.setdefault(tuple(stack for stack, _ in places), []).append(names)
    return kinds


class Layers(NamedTuple):
    """Every single layer of ``Sampled``, by stack: as views, of which torch makes one gradient a stack."""

    left: list[tuple[Tensor, ...]]
    right: list[tuple[Tensor, ...]]
    square_A: list[tuple[Tensor, ...]]


def beside_each_other(layers: Layers, groups: Sequence[Sequence[Place]]) -> Sampled:
    """The factors of L groups of the same shapes, each as ``SharedInput`` has them: (L, D, G (r + m)) and so on."""
    lefts = [
        torch.stack([layers.left[stack][layer] for stack, layer in members]) for members in zip(*groups, strict=True)
    ]
    r = layers.right[groups[0][0][0]][0].shape[0]
    left = lefts[0] if len(lefts) == 1 else cast(Tensor, _Diagonal.apply(r, *lefts))
    right, square_A = (gathered(each, groups).flatten(1, 2) for each in (layers.right, layers.square_A))
    return Sampled(left, right, square_A)


def gathered(each: Sequence[Sequence[Tensor]], groups: Sequence[Sequence[Place]]) -> Tensor:
    """(L, G, ...): a tensor of every layer of L groups of G, from those ``each`` stack has of its layers."""
    layers = torch.stack([each[stack][layer] for group in groups for stack, layer in group])
    return layers.unflatten(0, (len(groups), -1))


class _Diagonal(torch.autograd.Function):
    """G stacks (L, d_out, r + m) as one (L, D, G (r + m)), each in rows and columns of its own, zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        r, *lefts = args
        ctx.r, ctx.sizes, ctx.width = r, [left.shape[1] for left in lefts], lefts[0].shape[2]
        whole = lefts[0].new_zeros(len(lefts[0]), sum(ctx.sizes), len(lefts) * ctx.width)
        for left, (mean, noise) in zip(lefts, _blocks(whole, ctx.sizes, r), strict=True):
            mean.copy_(left[..., :r])
            noise.copy_(left[..., r:])
        return whole

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        blocks = _blocks(grad_outputs[0], ctx.sizes, ctx.r)
        return (None, *(torch.cat(pair, -1) for pair in blocks))


def _blocks(whole: Tensor, sizes: Sequence[int], r: int) -> list[tuple[Tensor, Tensor]]:
    """Views of each layer's mean and noise."""
    count = len(sizes)
    means, noises = whole.split([count * r, whole.shape[2] - count * r], -1)
    columns = zip(means.chunk(count, -1), noises.chunk(count, -1), strict=True)
    pairs = [(mean.split(sizes, 1), noise.split(sizes, 1)) for mean, noise in columns]
    return [(mean[member], noise[member]) for member, (mean, noise) in enumerate(pairs)]
