"""Several batches as one, side by side: what each adds to a layer's output can come from an adapter of its own.

Nothing is shared between them, not even a prefix that all their prompts begin with: behind the first adapted layer its
activations are each batch's own. Inside a batch its prefix is still read once.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.packing import Packing
from abmll.language.wiring import Wiring, by_name
from abmll.posterior import Factors, LayerUpdate, Noise, WeightSpace
from abmll.posterior.shared_runs import shared_runs
from abmll.posterior.stacked import Layout, Shares, stacked_layers


def can_be_joined(batches: Sequence[Batch]) -> bool:
    """Whether they lie in packed rows or have one length, and as many examples in each where a prefix is shared."""
    if any(batch.mask is not None for batch in batches):
        return len({batch.input_ids.shape[1] for batch in batches}) == 1
    return len({len(batch.answers) for batch in batches}) == 1


def joined(batches: Sequence[Batch], even: bool = False) -> tuple[Batch, Layout]:
    """One batch of all examples, in their order, and how the positions of its rows are shared out.

    ``even``: packed rows are filled up to the longest with positions that nothing reads. That is more to compute, and
    fewer operations. ``can_be_joined`` holds for the batches. None has a ``rest``.
    """
    first, device = batches[0], batches[0].rows.device
    is_packed = first.mask is None
    packing = Packing.joined([batch.places for batch in batches], even) if is_packed else None
    length = first.visible.shape[-1] if packing is None else packing.spread.shape[1]
    own = [batch.input_ids.numel() for batch in batches]
    sizes = [max(own)] * len(own) if is_packed and even else own
    width = max(batch.option_lengths.shape[1] for batch in batches)
    row_starts = _starts([len(batch.rows) for batch in batches])
    place_starts = _starts(sizes)
    option_starts = _starts([len(batch.answers) * width for batch in batches])
    whole = Batch(
        input_ids=_beside([batch.input_ids for batch in batches], sizes, is_packed),
        position_ids=_beside([batch.position_ids for batch in batches], sizes, is_packed),
        mask=None if is_packed else torch.cat([batch.mask for batch in batches if batch.mask is not None]),
        visible=torch.cat([seen(batch.visible, length) for batch in batches]),
        rows=torch.cat([batch.rows + start for batch, start in zip(batches, place_starts, strict=True)]),
        token_row=torch.cat([batch.token_row + start for batch, start in zip(batches, row_starts, strict=True)]),
        token_id=torch.cat([batch.token_id for batch in batches]),
        token_option=torch.cat(
            [widened(batch, width) + start for batch, start in zip(batches, option_starts, strict=True)]
        ),
        option_lengths=torch.cat([padded(batch.option_lengths, width) for batch in batches]),
        answers=torch.cat([batch.answers for batch in batches]),
        num_tokens=sum(batch.num_tokens for batch in batches),
        packing=packing,
    )
    lower = [batch.lower for batch in batches if batch.lower is not None]
    if len(lower) == len(batches):
        whole = replace(whole, lower=_beside(lower, sizes, is_packed))
    scored = [len(batch.rows) for batch in batches]
    return whole, {
        sum(scored): Shares.of(scored, device),
        sum(sizes): Shares.of(own, device, filled=even),
    }


def stacked_updates(
    wiring: Wiring, whole: Adapter, noises: Sequence[Noise | None], layout: Layout
) -> dict[str, LayerUpdate]:
    """Of every adapted layer, by name, what the adapters in ``whole`` add to it under their noises, each to its run.

    Those that read the same tensor are computed together where noise is local.
    """
    space, drawn = wiring.space, [noise for noise in noises if noise is not None]
    if isinstance(space, WeightSpace) and drawn and drawn[0].kind == "local":
        groups, together = wiring.groups(whole)
        return shared_runs(space, list(whole.stacks.values()), groups, drawn, together, layout)
    return by_name(whole, lambda shape: stacked_layers(space, whole.stacks[shape], noises, layout))


@torch.no_grad()
def stack(adapters: Sequence[Adapter]) -> Adapter:
    """One whose tensors (C, L, ...) hold those of C adapters."""
    stacks = {
        shape: Factors(*map(torch.stack, zip(*(one.stacks[shape] for one in adapters), strict=True)))
        for shape in adapters[0].stacks
    }
    return Adapter(stacks, adapters[0].layers)


def _beside(values: Sequence[Tensor], sizes: Sequence[int], is_packed: bool) -> Tensor:
    """Packed rows (1, M, ...) behind each other, each with as many places as ``sizes`` say; padded rows as they are."""
    if not is_packed:
        return torch.cat(list(values))
    filled = []
    for row, size in zip(values, sizes, strict=True):
        filled.append(row)
        if size > row.shape[1]:
            filled.append(row.new_zeros(1, size - row.shape[1], *row.shape[2:]))
    return torch.cat(filled, 1)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:number]) for number in range(len(sizes))]


def padded(values: Tensor, width: int, value: int = 0) -> Tensor:
    """``values`` (..., w) with ``value`` behind them, (..., width)."""
    return values if values.shape[-1] == width else F.pad(values, (0, width - values.shape[-1]), value=value)


def widened(batch: Batch, width: int) -> Tensor:
    """``token_option`` where each example has ``width`` options."""
    own = batch.option_lengths.shape[1]
    return batch.token_option if own == width else batch.token_option + batch.token_option // own * (width - own)


def seen(visible: Tensor, length: int) -> Tensor:
    """``visible`` (N, 1, T, T) for ``length`` positions, of which those added see themselves alone."""
    added = length - visible.shape[-1]
    if not added:
        return visible
    padded = F.pad(visible, (0, added, 0, added))
    padded.diagonal(dim1=-2, dim2=-1)[..., -added:] = True
    return padded
