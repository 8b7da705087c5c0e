"""Examples on disk instead of in memory: each is made anew when it is asked for.

They lie in a spool in blocks of 128: a line of JSON for each example, and before the lines the digests of their
contents. What stays in memory is the place of every block, the distinct lists of options, and four bytes an example for
the side it is on.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, overload

import numpy as np

from abmll.tasks.digests import BYTES, Digests, digests_of
from abmll.tasks.spool import Spool
from abmll.tasks.types import SIDES, Example, ExampleStore, Split, Task, WrittenExample, num_train

BLOCK = 128  # examples: of a random one, so many lines are read
MAX_LISTS = 64  # distinct lists of options that a task holds in memory; further ones stand with their example


def store(task: Task, spool: Spool) -> Task:
    """The same task, its examples on disk."""
    blocks = _Blocks(spool, WrittenExample if task.is_written else Example)
    digests = np.concatenate(
        [blocks.add(task.examples[start : start + BLOCK]) for start in range(0, len(task.examples), BLOCK)]
    )
    marks = [example.split for example in task.examples]
    sides = np.array([mark == "train" for mark in marks]) if marks[0] is not None else _are_smallest(digests)
    indices = {"train": np.flatnonzero(sides), "test": np.flatnonzero(~sides)}
    answered = all(example.answer is not None for example in task.examples)
    sides = {side: array("I", indices[side].tolist()) for side in SIDES}
    return replace(task, examples=StoredExamples(blocks, range(blocks.length), answered, sides))


def _are_smallest(digests: Digests) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each is for training, as ``split_by_content`` has it."""
    distinct, ranks = np.unique(digests, return_inverse=True)
    return ranks < num_train(len(distinct))


@dataclass
class _Blocks:
    """Where the blocks of a task begin and end, and what their lines leave out."""

    spool: Spool
    kind: type[Example]
    length: int = 0
    begins: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    options: dict[tuple[str, ...], int] = field(default_factory=dict)
    lists: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, examples: Sequence[Example]) -> Digests:
        """Write a block; all but the last have 128 examples. Returns the digests of the examples."""
        digests = digests_of(examples)
        lines = b"\n".join(self._line(example) for example in examples)
        block = digests.tobytes() + lines
        self.begins.append(self.spool.append(block))
        self.sizes.append(len(block))
        self.length += len(examples)
        return digests

    def _line(self, example: Example) -> bytes:
        options: Any = self.options.get(example.options)
        if options is None and len(self.lists) < MAX_LISTS:
            options = self.options[example.options] = len(self.lists)
            self.lists.append(example.options)
        values = [example.id, example.input, example.options if options is None else options, example.answer]
        # Without the escapes of ASCII, which take up to six bytes a character.
        return json.dumps([*values, example.split], ensure_ascii=False).encode("utf-8", "surrogatepass")

    def lines(self, block: int) -> list[bytes]:
        """The lines of a block."""
        head = BYTES * min(BLOCK, self.length - block * BLOCK)
        return self.spool.read(self.begins[block] + head, self.sizes[block] - head).split(b"\n")

    def digests(self) -> bytes:
        """The digests of all examples."""
        heads = (BYTES * min(BLOCK, self.length - block * BLOCK) for block in range(len(self.begins)))
        return b"".join(self.spool.read(begin, size) for begin, size in zip(self.begins, heads, strict=True))

    def example(self, line: bytes) -> Example:
        """What a line stands for."""
        identity, text, options, answer, split = json.loads(line)
        options = self.lists[options] if isinstance(options, int) else tuple(options)
        return self.kind(identity, text, options, answer, split)


class StoredExamples(ExampleStore):
    """Some of the examples that ``blocks`` has: those of the ``indices``, in that order."""

    def __init__(
        self,
        blocks: _Blocks,
        indices: Sequence[int],
        answered: bool,
        sides: "dict[Split, array[int]] | None" = None,
    ) -> None:
        self._blocks = blocks
        self._indices = indices
        self._sides = sides or {}
        self.answered = answered
        self.are_written = blocks.kind is WrittenExample

    def side(self, side: Split) -> "StoredExamples":
        """The examples on a side of their task."""
        return StoredExamples(self._blocks, self._sides[side], self.answered)

    def digests(self) -> bytes:
        """16 bytes of every example's content, one behind the other."""
        return self._blocks.digests()

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self._read(self._indices[index]))
        block, line = divmod(self._indices[index], BLOCK)
        return self._blocks.example(self._blocks.lines(block)[line])

    def __iter__(self) -> Iterator[Example]:
        return self._read(self._indices)

    def _read(self, indices: Sequence[int]) -> Iterator[Example]:
        """The examples of these indices; neighbours are read together."""
        for block, group in groupby(indices, key=lambda index: index // BLOCK):
            lines = self._blocks.lines(block)
            for index in group:
                yield self._blocks.example(lines[index % BLOCK])
