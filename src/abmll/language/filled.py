"""Batches filled up to the sizes of a ``Bucket``. Nothing reads what is added, so it changes no result.

Each example gets a row of its own: in a packed row all places behind one example would depend on how long it is.
"""

from dataclasses import replace

from torch.nn import functional as F

from abmll.language.batch import Batch
from abmll.language.bucket import Bucket
from abmll.language.joined import padded, seen, widened


def filled(batch: Batch) -> Batch:
    """A row for each of a batch's N examples, and its sizes those of its bucket; its ``rest`` is left out.

    The number of its tokens is 0, so that it is no part of the shape.
    """
    length, rows, spread = batch.visible.shape[-1], batch.rows, None
    if batch.packing is not None:
        spread, rows = batch.packing.spread.flatten(), batch.packing.gather[rows]
    width, lower = batch.option_lengths.shape[1], batch.lower
    bucket = batch.bucket or Bucket.holding(length, width, len(rows), len(batch.token_id))
    ids, positions = batch.input_ids, batch.position_ids
    if spread is not None:
        ids, positions = (values.flatten()[spread].view(-1, length) for values in (ids, positions))
        lower = None if lower is None else lower[0, spread].view(-1, length, lower.shape[-1])
    visible = seen(batch.visible, bucket.length)
    return replace(
        batch,
        input_ids=padded(ids, bucket.length),
        position_ids=padded(positions, bucket.length),
        mask=visible[:, 0, :, 0],  # what is no padding sees the prompt's first token
        visible=visible,
        rows=padded(rows + rows // length * (bucket.length - length), bucket.rows),
        token_row=padded(batch.token_row, bucket.tokens),
        token_id=padded(batch.token_id, bucket.tokens),
        token_option=padded(widened(batch, bucket.options), bucket.tokens, bucket.options - 1),
        option_lengths=padded(batch.option_lengths, bucket.options),
        num_tokens=0,
        examples=(),
        packing=None,
        counts=None,
        lower=None if lower is None else F.pad(lower, (0, 0, 0, bucket.length - length)),
        rest=(),
    )
