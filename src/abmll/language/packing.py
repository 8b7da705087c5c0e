"""Packed batches: all examples in one row, without padding, and a prefix that their prompts share read once.

Linear layers, norms and embeddings see one row of M tokens. Only attention needs to know where an example begins: it
spreads the row's queries, keys and values out to (N, T), attends there as in a padded batch, and gathers the outputs
again. Attention is a few per cent of a short sequence's cost, so the padding that is left there is cheap. Behind a
long prefix it is half of it: then the prefix attends to itself once, and of each example only the rest does.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "packed_"
WORTHWHILE = 256  # queries saved from which on a second call of the attention function, for the prefix, pays

KeysAndValues = Mapping[torch.nn.Module, tuple[Tensor, Tensor]]  # of M places (1, h, M, d) each, by attention module


@dataclass(frozen=True)
class Packing:
    """Where the positions of N examples of at most T tokens lie in a row of M, and back.

    The row holds the shared prefix, then what follows it in each example.
    """

    spread: Tensor  # (N, T) place in the row of every position; 0 on padding
    gather: Tensor  # (M,) flat position n * T + t of every place in the row; the prefix is the first example's
    unread: Tensor  # (N, T) bool, True where no place in the row reads: padding, and the prefix of later examples
    prefix: int  # shared tokens
    rest: "Packing | None" = None  # of what follows the prefix, where the prefix attends to itself once
    shared: tuple[Tensor, Tensor] | None = None  # of several rows joined: places (S,), flat positions (S, K) beside one
    seen: dict[torch.nn.Module, tuple[Tensor, Tensor]] | None = None  # filled with the row's keys and values
    before: KeysAndValues | None = None  # those of places before the row's: see ``behind``

    @classmethod
    def of(cls, lengths: Sequence[int], prefix: int) -> "Packing":
        """The packing of examples of those ``lengths``, which begin with ``prefix`` tokens that are all the same.

        The prefix attends once where it is at least half of the longest example and that saves ``WORTHWHILE`` queries.
        """
        longest, first = max(lengths), prefix  # first: place in the row of what follows the prefix
        spread: list[list[int]] = []
        unread: list[list[bool]] = []
        gather: list[int] = []
        for number, length in enumerate(lengths):
            begin, padding = prefix if number else 0, longest - length
            spread.append([*range(prefix), *range(first, first + length - prefix), *[0] * padding])
            unread.append([*[True] * begin, *[False] * (length - begin), *[True] * padding])
            gather += range(number * longest + begin, number * longest + length)
            first += length - prefix
        is_long = 2 * prefix >= longest and (len(lengths) - 1) * prefix >= WORTHWHILE
        rest = cls.of([length - prefix for length in lengths], 0) if is_long else None
        return cls(torch.tensor(spread), torch.tensor(gather), torch.tensor(unread), prefix, rest)

    @classmethod
    def joined(cls, packings: Sequence["Packing"], even: bool = False) -> "Packing":
        """Of rows laid one behind the other, of N examples each; each row keeps the prefix of its own examples.

        Which examples share a place is written out, so that it takes as many operations for many rows as for one.
        ``even``: behind each row are as many places as the longest has more. They stand for a position that is padding.
        """
        sizes, length = [len(one.gather) for one in packings], max(one.spread.shape[1] for one in packings)
        filled = [max(sizes) - size if even else 0 for size in sizes]
        length += any(filled)
        spread, gather, unread, places, beside = [], [], [], [], []
        place = position = 0
        for one, empty in zip(packings, filled, strict=True):
            count, own = one.spread.shape
            spread.append(F.pad(one.spread + place, (0, length - own)))
            unread.append(F.pad(one.unread, (0, length - own), value=True))
            gather.append(one.gather + one.gather // own * (length - own) + position)
            if empty:
                gather.append(one.gather.new_full((empty,), position + length - 1))
            if one.prefix and count > 1:
                first = torch.arange(one.prefix, device=one.gather.device)
                places.append(first + place)
                beside.append(first[:, None] + torch.arange(1, count, device=first.device) * length + position)
            place, position = place + len(one.gather) + empty, position + count * length
        shared = (torch.cat(places), torch.cat(beside)) if places else None
        return cls(torch.cat(spread), torch.cat(gather), torch.cat(unread), 0, shared=shared)

    def behind(self, size: int, counts: Sequence[int]) -> tuple["Packing", Tensor]:
        """Without the first ``size`` tokens of each example, and the places that are left; no prefix is shared.

        There are C groups of so many examples, which begin alike: keys and values of their beginnings, ``before``, are
        those of a row of C times ``size`` places that comes first.
        """
        left = self.gather % self.spread.shape[1] >= size
        places = left.cumsum(0) - 1 + len(counts) * size
        groups = torch.arange(len(counts), device=left.device).repeat_interleave(torch.tensor(counts).to(left.device))
        beginnings = groups[:, None] * size + torch.arange(size, device=left.device)
        spread = torch.cat([beginnings, places[self.spread[:, size:]]], 1)
        unread = self.unread.clone()
        unread[:, :size] = True
        rest = self.of((~unread).sum(1).tolist(), 0).to(left.device)
        return Packing(spread, self.gather[left], unread, size, rest), left.nonzero()[:, 0]

    def to(self, device: torch.device) -> "Packing":
        """The same packing with its tensors on ``device``."""
        rest = None if self.rest is None else self.rest.to(device)
        shared = None if self.shared is None else (self.shared[0].to(device), self.shared[1].to(device))
        own = self.spread.to(device), self.gather.to(device), self.unread.to(device)
        return Packing(*own, self.prefix, rest, shared)

    def counts(self) -> Tensor:
        """(1, M): of how many examples each place in the row is a token."""
        counts = torch.ones(1, len(self.gather))
        counts[:, : self.prefix] = len(self.spread)
        return counts

    def lay_out(self, rows: Sequence[Tensor]) -> Tensor:
        """Each example's own activations, (T_n, d) a row, as one packed row (1, M, d)."""
        return torch.cat([rows[0][: self.prefix], *(row[self.prefix :] for row in rows)])[None]

    def take_apart(self, row: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """The way back: of a packed row (M, d) each example's own activations, (T_n, d) for every length T_n."""
        return [row[places[:length]] for places, length in zip(self.spread, lengths, strict=True)]


class _Spread(torch.autograd.Function):
    """(M, d) -> (N, h, T, size) for each (h, size) of ``shapes``, whose columns lie side by side.

    Its gradient gathers, where autograd's own would add up token by token.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        row, ctx.packing, shapes = args
        spread = row.index_select(0, ctx.packing.spread.flatten()).view(*ctx.packing.spread.shape, -1)
        parts = spread.split([count * size for count, size in shapes], -1)
        return tuple(part.unflatten(-1, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        packing, heads = ctx.packing, [gradient.transpose(1, 2) for gradient in grad_outputs]
        if len({gradient.shape[-1] for gradient in heads}) > 1:
            heads = [gradient.flatten(2) for gradient in heads]
        gradient = torch.cat(heads, 2).view(packing.spread.numel(), -1)
        row = gradient.index_select(0, packing.gather)
        if packing.prefix:
            later = gradient.view(*packing.spread.shape, -1)[1:, : packing.prefix].sum(0)
            row[: packing.prefix].add_(later)
        if packing.shared is not None:
            places, beside = packing.shared
            later = gradient.index_select(0, beside.flatten()).view(*beside.shape, -1).sum(1)
            row.index_add_(0, places, later)  # each place once: the order of sums is given
        return row, None, None


class _Gather(torch.autograd.Function):
    """(N * T, d) -> (M, d), the way back."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        spread, ctx.packing = args
        return spread.index_select(0, ctx.packing.gather)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        packing, [gradient] = ctx.packing, grad_outputs
        spread = gradient.index_select(0, packing.spread.flatten())
        return spread.masked_fill(packing.unread.flatten()[:, None], 0.0), None


def packed_attention(
    inner: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function ``inner``, on a packed row where ``packing`` is given.

    query (1, heads, M, d), key and value (1, their heads, M, d), attention_mask (N, 1, T, T) -> (1, M, heads, d).
    """
    attend = _own_eager(module) if inner == "eager" else ALL_ATTENTION_FUNCTIONS[inner]
    if packing is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    if packing.seen is not None:
        packing.seen[module] = key, value
    if packing.rest is None:
        spread = _spread_heads((query, key, value), packing)
        output, _ = attend(module, *spread, attention_mask, **kwargs)
        return _gather_heads(output, packing), None
    assert attention_mask is not None
    size, parts = packing.prefix, []
    if packing.before is None:
        own = (heads[:, :, :size] for heads in (query, key, value))
        parts, query = [attend(module, *own, attention_mask[:1, :, :size, :size], **kwargs)[0]], query[:, :, size:]
    else:
        key, value = (torch.cat(pair, 2) for pair in zip(packing.before[module], (key, value), strict=True))
    [rest] = _spread_heads([query], packing.rest)
    spread = _spread_heads((key, value), packing)
    output, _ = attend(module, rest, *spread, attention_mask[:, :, size:], **kwargs)
    return torch.cat([*parts, _gather_heads(output, packing.rest)], dim=1), None


def _spread_heads(each: Sequence[Tensor], packing: Packing) -> tuple[Tensor, ...]:
    """(1, h, M, d) -> (N, h, T, d), of queries, keys and values together: on a GPU a call costs more than its copy."""
    shapes = [(heads.shape[1], heads.shape[3]) for heads in each]
    rows = [heads.transpose(1, 2).reshape(heads.shape[2], -1) for heads in each]
    return cast("tuple[Tensor, ...]", _Spread.apply(torch.cat(rows, 1) if len(rows) > 1 else rows[0], packing, shapes))


def _gather_heads(output: Tensor, packing: Packing) -> Tensor:
    """(N, T, h, d) -> (1, M, h, d)."""
    gathered = _Gather.apply(output.flatten(2).flatten(0, 1), packing)
    assert isinstance(gathered, Tensor)
    return gathered.view(1, len(packing.gather), *output.shape[2:])


def _own_eager(module: torch.nn.Module) -> Any:
    """The plain attention of the module's own family: families differ in it (caps, sinks, grouped heads)."""
    return sys.modules[type(module).__module__].eager_attention_forward


def install_packing(model: PreTrainedModel) -> bool:
    """Let ``model`` attend over packed rows, through transformers' interface for attention functions.

    False, and the model as it was, where its architecture does not follow that interface.
    """
    inner = model.config._attn_implementation
    if inner is None or not model._can_set_attn_implementation():
        return False
    name = PREFIX + inner
    AttentionInterface.register(name, partial(packed_attention, inner))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    model.set_attn_implementation(name)
    return True


def remove_packing(model: PreTrainedModel) -> None:
    """Undo ``install_packing``."""
    name = model.config._attn_implementation
    assert name is not None
    model.set_attn_implementation(name.removeprefix(PREFIX))
