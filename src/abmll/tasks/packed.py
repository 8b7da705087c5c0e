"""A task's examples in a fraction of the memory that as many objects take: compressed, and unpacked when read.

A thousand tasks of real questions are tens of megabytes as Python objects; a training run reads most of them once, to
make tokens. Compressed in memory they neither depend on files that may change meanwhile nor leave any behind.
"""

import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

from abmll.tasks.example import Example

BLOCK = 32  # examples compressed together: more are smaller, but reading a single one unpacks all of its block
LEVEL = 1  # zlib's fastest: higher levels save little on blocks of this size


class PackedExamples(Sequence[Example]):
    """A read-only sequence of examples. Each reading makes new objects, equal to those that were packed.

    Reading in order unpacks every block once; a single index unpacks its block. Slices and ``select`` are views.
    """

    __slots__ = ("_blocks", "_positions")

    def __init__(self, examples: Iterable[Example]) -> None:
        iterator = iter(examples)
        blocks: list[bytes] = []
        length = 0
        while rows := [_row(example) for example in islice(iterator, BLOCK)]:
            blocks.append(zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), LEVEL))
            length += len(rows)
        self._blocks = tuple(blocks)
        self._positions: Sequence[int] = range(length)

    def select(self, indices: Iterable[int]) -> "PackedExamples":
        """The examples at these indices (0 to ``len - 1``), in this order."""
        return self._view(array("i", [self._positions[index] for index in indices]))

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Example]:
        unpacked, rows = -1, []
        for position in self._positions:
            block, row = divmod(position, BLOCK)
            if block != unpacked:
                unpacked, rows = block, self._unpack(block)
            yield _example(rows[row])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedExamples": ...
    def __getitem__(self, index: int | slice) -> "Example | PackedExamples":
        if isinstance(index, slice):
            return self._view(self._positions[index])
        block, row = divmod(self._positions[index], BLOCK)
        return _example(self._unpack(block)[row])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedExamples | tuple):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} packed examples>"

    def _view(self, positions: Sequence[int]) -> "PackedExamples":
        view = PackedExamples(())
        view._blocks, view._positions = self._blocks, positions
        return view

    def _unpack(self, block: int) -> list[list]:
        return json.loads(zlib.decompress(self._blocks[block]))


def _row(example: Example) -> list:
    return [example.id, example.input, example.options, example.answer, example.split]


def _example(row: list) -> Example:
    identity, text, options, answer, split = row
    return Example(identity, text, tuple(options), answer, split)
