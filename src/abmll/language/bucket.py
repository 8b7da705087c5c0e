"""Batches filled up to few sizes, so that one compiled graph serves many of them.

A compiled graph is of one shape. So each example gets a row of its own, of a length that many batches share, and what
is scored is filled up as well. Nothing reads what is added, so it changes no result.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.joined import padded, seen, widened


class Bucket(NamedTuple):
    """The sizes that batches are filled up to."""

    length: int  # positions of an example
    options: int  # of an example, the last of which no example has: what is added is scored as its tokens
    rows: int  # hidden states that predict scored tokens
    tokens: int  # scored tokens

    @classmethod
    def holding(cls, length: int, options: int, rows: int, tokens: int) -> "Bucket":
        """The smallest bucket for so many of each."""
        return cls(_up(length, 32), _up(options + 1, 4), _up(rows, 8), _up(tokens, 8))

    @classmethod
    def of(cls, batch: Batch) -> "Bucket":
        """That of a batch alone."""
        sizes = batch.option_lengths.shape[1], len(batch.rows), len(batch.token_id)
        return cls.holding(batch.visible.shape[-1], *sizes)

    @classmethod
    def of_any(cls, examples: Sequence[Encoded], size: int) -> "Bucket":
        """One for every batch of ``size`` of these examples."""
        scored = [sum(map(len, example.options)) for example in examples]
        rows = [1 + tokens - len(example.options) for tokens, example in zip(scored, examples, strict=True)]
        options = max(len(example.options) for example in examples)
        return cls.holding(max(map(len, examples)), options, size * max(rows), size * max(scored))


def bucketed(batch: Batch, bucket: Bucket | None = None) -> Batch:
    """A row for each of a batch's N examples, all sizes those of ``bucket`` (by default ``Bucket.of``).

    The number of its tokens is 0, so that it is no part of the shape. Its ``rest`` is left out.
    """
    bucket = bucket or Bucket.of(batch)
    length, spread = batch.visible.shape[-1], _spread(batch)
    visible = seen(batch.visible, bucket.length)
    row, position = _apart(batch, length)
    ids, places = (values.flatten()[spread] for values in (batch.input_ids, batch.position_ids))
    lower = None if batch.lower is None else batch.lower.flatten(0, 1)[spread]
    added = bucket.length - length
    return replace(
        batch,
        input_ids=padded(ids, bucket.length),
        position_ids=padded(places, bucket.length),
        mask=visible[:, 0, :, 0],  # what is no padding sees the prompt's first token
        visible=visible,
        rows=padded(row * bucket.length + position, bucket.rows),
        token_row=padded(batch.token_row, bucket.tokens),
        token_id=padded(batch.token_id, bucket.tokens),
        token_option=padded(widened(batch, bucket.options), bucket.tokens, bucket.options - 1),
        option_lengths=padded(batch.option_lengths, bucket.options),
        num_tokens=0,
        packing=None,
        counts=None,
        lower=None if lower is None else F.pad(lower, (0, 0, 0, added)),
        rest=(),
    )


def _spread(batch: Batch) -> Tensor:
    """(N, T): the place of each example's positions among all that the batch reads; any one where it has none."""
    if batch.packing is not None:
        return batch.packing.spread
    return torch.arange(batch.input_ids.numel(), device=batch.rows.device).view(batch.input_ids.shape)


def _apart(batch: Batch, length: int) -> tuple[Tensor, Tensor]:
    """(H,) twice: the example and the position in it of every hidden state that is scored."""
    flat = batch.rows if batch.packing is None else batch.packing.gather[batch.rows]
    return flat // length, flat % length


def _up(count: int, least: int) -> int:
    """The next size: a power of two times ``least``, or one and a half times that, which is half of it away at most."""
    size = least
    while size < count:
        if size + size // 2 >= count:
            return size + size // 2
        size *= 2
    return size
