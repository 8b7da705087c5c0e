"""One example in tokens, held as the bytes that a file of many of them has too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBER = np.dtype("<i4")
ANSWER, TRUNCATED, NUM_OPTIONS, PROMPT = range(4)
HEAD = 4  # numbers before the options' lengths


def _read(part: Callable[["Encoded"], Any]) -> Any:
    """A dataclass field that is read out of the packed bytes."""
    return property(part)


@dataclass(init=False, eq=False)
class Encoded:
    """One example in tokens: the prompt, each option's continuation, the answer's index (None: unknown).

    ``truncated`` counts the tokens cut out of the input. Fields are made when they are read, tokens as tuples of ints;
    what is held, in ``packed``, are 4 bytes a number: answer (-1: unknown), truncated, number of options, length of the
    prompt, length of each option, then all tokens. Equal and hashed by content.
    """

    __slots__ = ("packed",)
    prompt: tuple[int, ...] = _read(lambda self: self._prompt())
    options: tuple[tuple[int, ...], ...] = _read(lambda self: self._options())
    answer: int | None = _read(lambda self: None if self._number(ANSWER) < 0 else self._number(ANSWER))
    truncated: int = _read(lambda self: self._number(TRUNCATED))

    def __init__(
        self, prompt: Sequence[int], options: Sequence[Sequence[int]], answer: int | None, truncated: int = 0
    ) -> None:
        head = [-1 if answer is None else answer, truncated, len(options), len(prompt), *map(len, options)]
        tokens = [token for part in (prompt, *options) for token in part]
        self.packed: bytes = np.array(head + tokens, NUMBER).tobytes()

    @classmethod
    def of(cls, packed: bytes) -> "Encoded":
        """The example whose ``packed`` this is."""
        encoded = cls.__new__(cls)
        encoded.packed = packed
        return encoded

    def __len__(self) -> int:
        """The length of the sequence the model reads: an option's last token is only ever predicted."""
        return len(self.packed) // NUMBER.itemsize - HEAD - 2 * self._number(NUM_OPTIONS)

    def __eq__(self, other: object) -> bool:
        return self.packed == other.packed if isinstance(other, Encoded) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.packed)

    def _prompt(self) -> tuple[int, ...]:
        start = HEAD + self._number(NUM_OPTIONS)
        return self._numbers(start, start + self._number(PROMPT))

    def _options(self) -> tuple[tuple[int, ...], ...]:
        start = HEAD + self._number(NUM_OPTIONS)
        lengths = self._numbers(HEAD, start)
        numbers = self._numbers(start + self._number(PROMPT), None)
        ends = np.cumsum(lengths).tolist()
        return tuple(numbers[end - length : end] for end, length in zip(ends, lengths, strict=True))

    def _number(self, index: int) -> int:
        start = index * NUMBER.itemsize
        return int.from_bytes(self.packed[start : start + NUMBER.itemsize], "little", signed=True)

    def _numbers(self, start: int, stop: int | None) -> tuple[int, ...]:
        return tuple(np.frombuffer(self.packed, NUMBER)[start:stop].tolist())
