"""What all questions to a task begin with, read once with each sample of its adapters: keys and values, kept for later."""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from abmll.language.adapter import Adapter
from abmll.language.packing import KeysAndValues


class Beginning(NamedTuple):
    """What an adapter's passes made of the tokens."""

    settings: tuple[Any, ...]  # of its noise
    tokens: tuple[int, ...]
    passes: tuple[KeysAndValues, ...]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.nbytes for own in self.passes for pair in own.values() for tensor in pair)


class Beginnings:
    """The last that were read, in at most ``max_bytes``; those of an adapter that is no more are dropped with it.

    An adapter must not change after it was read with.
    """

    def __init__(self, max_bytes: int = 256_000_000) -> None:
        self.max_bytes = max_bytes
        self.kept: weakref.WeakKeyDictionary[Adapter, Beginning] = weakref.WeakKeyDictionary()

    def find(self, phi: Adapter, settings: tuple[Any, ...], tokens: tuple[int, ...]) -> Sequence[KeysAndValues] | None:
        """What is kept of ``tokens``, or of more that begin with them."""
        found = self.kept.pop(phi, None)
        if found is None or found.settings != settings or found.tokens[: len(tokens)] != tokens:
            return None
        self.kept[phi] = found  # at the end: the first are those unused for longest
        return found.passes

    def keep(self, phi: Adapter, beginning: Beginning) -> None:
        """Keep it in the place of what was kept for ``phi``."""
        self.kept.pop(phi, None)
        self.kept[phi] = beginning
        kept = list(self.kept.items())
        size = sum(own.nbytes for _, own in kept)
        for unused, own in kept:
            if size <= self.max_bytes:
                break
            del self.kept[unused]
            size -= own.nbytes


def apart(seen: KeysAndValues, lengths: Sequence[int]) -> list[KeysAndValues]:
    """Keys and values of one row as those of its parts, of so many places each, in memory of their own."""
    each: list[dict[nn.Module, tuple[Tensor, Tensor]]] = [{} for _ in lengths]
    for module, (keys, values) in seen.items():
        pairs = zip(keys.split(list(lengths), 2), values.split(list(lengths), 2), strict=True)
        for own, (key, value) in zip(each, pairs, strict=True):
            own[module] = key.clone(), value.clone()
    return [*each]


def beside(each: Sequence[KeysAndValues], size: int) -> KeysAndValues:
    """The first ``size`` places of several rows as one row."""
    rows = {module: [own[module] for own in each] for module in each[0]}
    return {
        module: (torch.cat([key[:, :, :size] for key, _ in pairs], 2), torch.cat([val[:, :, :size] for _, val in pairs], 2))
        for module, pairs in rows.items()
    }
