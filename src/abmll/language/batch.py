"""Encoded examples as one batch, packed or padded, in which every option continues the same prompt.

An example is one sequence: its prompt, then the options' continuations side by side. The attention mask lets each
continuation see the prompt and itself only, and its positions count on from the prompt, so every option is scored as
if it stood alone while the prompt is read once. One sequence per example also means that one sample of the weights
scores all its options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from abmll.language.bucket import Bucket
from abmll.language.encoding import Encoded
from abmll.language.packing import Packing

MAX_BATCH = 32
PREFIXED = 4  # times the tokens of a batch: its positions at most, a shared prefix counted for every example


@dataclass(frozen=True)
class Batch:
    """N examples of at most T positions and C options; M scored tokens predicted at H hidden states.

    The model reads R rows of L positions: padded, R = N and L = T; packed, R = 1 and L is what the examples have
    together, a prefix that they share counted once.
    """

    input_ids: Tensor  # (R, L)
    position_ids: Tensor  # (R, L)
    mask: Tensor | None  # (R, L) bool, False on padding; None where there is none
    visible: Tensor  # (N, 1, T, T) bool, True where the row may attend to the column
    rows: Tensor  # (H,) flat positions r * L + l whose hidden states predict scored tokens
    token_row: Tensor  # (M,) index into rows
    token_id: Tensor  # (M,)
    token_option: Tensor  # (M,) flat option n * C + c
    option_lengths: Tensor  # (N, C) scored tokens; 0 where the example has no such option
    answers: Tensor  # (N,), -1 where unknown
    num_tokens: int  # of the examples together, padding left out
    packing: Packing | None = None  # where the examples lie in a packed row
    counts: Tensor | None = None  # (R, L) how many examples a position stands for; None where that is one everywhere
    lower: Tensor | None = None  # (R, L, d) output of the blocks below the lowest adapted layer, where known
    rest: tuple["Batch", ...] = ()  # further examples of the same gradient step, for passes of their own
    bucket: Bucket | None = None  # what a compiled step fills it up to; None: the smallest that holds it
    examples: tuple[Encoded, ...] = ()  # those it was made of, where they are read in another way too

    @property
    def parts(self) -> tuple["Batch", ...]:
        """What a gradient step reads, one pass after the other: this batch and the rest."""
        return (self, *self.rest)

    @property
    def is_written(self) -> bool:
        """Whether the answers are written: there is one text to an example, and nothing to choose from."""
        return self.option_lengths.shape[1] == 1

    @property
    def places(self) -> Packing:
        """Where a packed batch's examples lie; one that is alone fills its row."""
        if self.packing is not None:
            return self.packing
        return Packing.of([self.input_ids.shape[1]], 0).to(self.rows.device)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on ``device``."""
        values: dict[str, Any] = vars(self)
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | Packing)}
        return replace(self, **moved)

    def runs(self, counts: Sequence[int]) -> dict[int, list[int]]:
        """How its positions are shared out among groups of so many examples each, one group behind the other.

        A list of how many each group has: of all flat positions, and of those alone that are scored (which is all that
        a last MLP sees of a packed row). The key is how many there are together. No prefix may be shared.
        """
        rows, length = self.input_ids.shape
        if self.packing is None:
            positions = [count * length for count in counts]
        else:
            lengths = iter((~self.packing.unread).sum(1).tolist())
            positions = [sum(islice(lengths, count)) for count in counts]
        stops = torch.tensor(positions, device=self.rows.device).cumsum(0)
        scored = torch.bincount(torch.bucketize(self.rows, stops, right=True), minlength=len(counts)).tolist()
        return {len(self.rows): scored, rows * length: positions}

    def behind(self, size: int, counts: Sequence[int]) -> "Batch":
        """A packed batch without the first ``size`` tokens of each example: see ``Packing.behind``."""
        packing, left = self.places.behind(size, counts)
        return replace(
            self,
            input_ids=self.input_ids[:, left],
            position_ids=self.position_ids[:, left],
            rows=torch.searchsorted(left, self.rows),
            lower=None if self.lower is None else self.lower[:, left],
            packing=packing,
        )

    def with_lower(self, rows: Sequence[Tensor]) -> "Batch":
        """The batch with the lower blocks' output for each of its examples, (T_n, d)."""
        if self.packing is None:
            return replace(self, lower=pad_sequence(list(rows), batch_first=True))
        return replace(self, lower=self.packing.lay_out(rows))


def make_batch(model: PreTrainedModel, examples: Sequence[Encoded], packed: bool, share_prefix: bool = True) -> Batch:
    """``collate`` for a model: with its padding token, on its device."""
    return collate(examples, model.config.get_text_config().pad_token_id or 0, packed, share_prefix).to(model.device)


def collate(examples: Sequence[Encoded], pad_id: int, packed: bool = False, share_prefix: bool = True) -> Batch:
    """One batch of N examples: in one row without padding, or padded on the right.

    ``share_prefix``: in a packed row, tokens that all prompts begin with are read once, and the gradient of one
    example then passes through the same activations as another's.
    """
    batch = _pad(examples, pad_id)
    if not packed:
        return batch
    if len(examples) == 1:
        return replace(batch, mask=None)  # packed already
    prefix = shared_prefix([example.prompt for example in examples]) if share_prefix else 0
    packing = Packing.of([len(example) for example in examples], prefix)
    return replace(
        batch,
        input_ids=batch.input_ids.flatten()[packing.gather][None],
        position_ids=batch.position_ids.flatten()[packing.gather][None],
        rows=packing.spread.flatten()[batch.rows],
        mask=None,
        packing=packing,
        counts=packing.counts() if prefix else None,
    )


def shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with; each keeps its last one, where its first answer token is predicted."""
    # What the least and the greatest have in common, all that lie between them have too.
    least, greatest, limit = min(prompts), max(prompts), min(map(len, prompts)) - 1
    return next((place for place in range(limit) if least[place] != greatest[place]), limit)


def batches_of_like_length(examples: Sequence[Encoded], max_tokens: int, prefix: int = 0) -> list[list[int]]:
    """Indices of all examples in batches of at most ``max_tokens`` padded tokens, shortest first.

    A ``prefix`` of so many tokens, which all prompts begin with, counts once a batch. Attention sees it with every
    example, which ``PREFIXED`` keeps within bounds.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(examples)), key=lambda i: (len(examples[i]), i)):
        length = len(examples[index])
        count = len(batches[-1]) + 1 if batches else 1
        is_full = count > MAX_BATCH or count * length > PREFIXED * max_tokens
        if not batches or is_full or prefix + count * (length - prefix) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _pad(examples: Sequence[Encoded], pad_id: int) -> Batch:
    """One batch of N examples, padded on the right."""
    length, width = max(len(example) for example in examples), max(len(example.options) for example in examples)
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    parts: list[list[int]] = []  # 0 in the prompt, c + 1 in option c, below 0 in padding
    rows: list[int] = []
    tokens: list[tuple[int, int, int]] = []
    for n, example in enumerate(examples):
        prompt = stop = len(example.prompt)
        sequence, places, part = list(example.prompt), list(range(prompt)), [0] * prompt
        fork = len(rows)
        rows.append(n * length + prompt - 1)
        for c, option in enumerate(example.options):
            start, stop = stop, stop + len(option) - 1
            sequence += option[:-1]
            places += range(prompt, prompt + stop - start)
            part += [c + 1] * (stop - start)
            predicted_at = [fork, *range(len(rows), len(rows) + stop - start)]
            rows += range(n * length + start, n * length + stop)
            tokens += [(row, token, n * width + c) for row, token in zip(predicted_at, option, strict=True)]
        padding = length - stop
        ids.append(sequence + [pad_id] * padding)
        positions.append(places + [0] * padding)
        parts.append(part + [-1] * padding)
    option_lengths = [[*map(len, example.options), *[0] * (width - len(example.options))] for example in examples]
    belongs = torch.tensor(parts)
    token_row, token_id, token_option = torch.tensor(tokens).unbind(1)
    answers = torch.tensor([-1 if example.answer is None else example.answer for example in examples])
    return Batch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        mask=belongs >= 0,
        visible=_visible(belongs)[:, None],
        rows=torch.tensor(rows),
        token_row=token_row,
        token_id=token_id,
        token_option=token_option,
        option_lengths=torch.tensor(option_lengths),
        answers=answers,
        num_tokens=sum(map(len, examples)),
        examples=tuple(examples),
    )


def _visible(belongs: Tensor) -> Tensor:
    """(N, T, T) of (N, T), 0 in the prompt, c + 1 in option c, below 0 in padding: what may attend to what before it.

    Padding attends to itself: a row that sees nothing would be NaN.
    """
    row, column = belongs[:, :, None], belongs[:, None]
    seen = ((column == 0) & (row >= 0) | (row == column) & (row > 0)).tril()
    return seen | torch.eye(belongs.shape[1], dtype=torch.bool)
