"""The few sizes that batches of a compiled step are filled up to, because a compiled graph is of one shape."""

from collections.abc import Sequence
from typing import NamedTuple

from abmll.language.encoding import Encoded


class Bucket(NamedTuple):
    """The sizes of a batch, beside the number of its examples."""

    length: int  # positions of an example
    options: int  # of an example, the last of which no example has: what is added is scored as its tokens
    rows: int  # hidden states that predict scored tokens
    tokens: int  # scored tokens

    @classmethod
    def holding(cls, length: int, options: int, rows: int, tokens: int) -> "Bucket":
        """The smallest bucket for so many of each."""
        return cls(_up(length, 32), _up(options + 1, 4), _up(rows, 8), _up(tokens, 8))

    @classmethod
    def of_any(cls, examples: Sequence[Encoded], size: int) -> "Bucket":
        """One for every batch of ``size`` of these examples."""
        scored = [sum(map(len, example.options)) for example in examples]
        rows = [1 + tokens - len(example.options) for tokens, example in zip(scored, examples, strict=True)]
        options = max(len(example.options) for example in examples)
        return cls.holding(max(map(len, examples)), options, size * max(rows), size * max(scored))


def _up(count: int, least: int) -> int:
    """The next size: ``least``, which is even, or a power of two times that, or one and a half times such a power."""
    size = least
    while size < count:
        if size + size // 2 >= count:
            return size + size // 2
        size *= 2
    return size
