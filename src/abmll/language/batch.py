"""Encoded examples as one padded batch in which every option continues the same prompt.

An example is one sequence: its prompt, then the options' continuations side by side. The attention mask lets each
continuation see the prompt and itself only, and its positions count on from the prompt, so every option is scored as
if it stood alone while the prompt is read once. One sequence per example also means that one sample of the weights
scores all its options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from abmll.language.encoding import Encoded


@dataclass(frozen=True)
class Batch:
    """N examples, T positions, at most C options; M scored tokens predicted at H hidden states."""

    input_ids: Tensor  # (N, T)
    position_ids: Tensor  # (N, T)
    mask: Tensor  # (N, T) bool, False on padding
    visible: Tensor  # (N, 1, T, T) bool, True where the row may attend to the column
    rows: Tensor  # (H,) flat positions n * T + t whose hidden states predict scored tokens
    token_row: Tensor  # (M,) index into rows
    token_id: Tensor  # (M,)
    token_option: Tensor  # (M,) flat option n * C + c
    option_lengths: Tensor  # (N, C) scored tokens; 0 where the example has no such option
    answers: Tensor  # (N,), -1 where unknown
    trunk: Tensor | None = None  # (N, T, d) activations below the lowest adapted layer, where they are at hand

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on ``device``."""
        tensors: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved)


def collate(examples: Sequence[Encoded], pad_id: int) -> Batch:
    """One batch of N examples, padded on the right."""
    length, width = max(len(example) for example in examples), max(len(example.options) for example in examples)
    ids = torch.full((len(examples), length), pad_id)
    positions = torch.zeros_like(ids)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    # Padding attends to itself: a row that sees nothing would be NaN.
    visible = torch.eye(length, dtype=torch.bool).repeat(len(examples), 1, 1)
    option_lengths = torch.zeros(len(examples), width, dtype=torch.long)
    rows: list[int] = []
    tokens: list[tuple[int, int, int]] = []
    for n, example in enumerate(examples):
        prompt = len(example.prompt)
        ids[n, :prompt] = torch.tensor(example.prompt)
        positions[n, :prompt] = torch.arange(prompt)
        visible[n, :prompt, :prompt] = torch.ones(prompt, prompt).tril().bool()
        rows.append(n * length + prompt - 1)
        fork, start = len(rows) - 1, prompt
        for c, option in enumerate(example.options):
            option_lengths[n, c] = len(option)
            stop = start + len(option) - 1
            ids[n, start:stop] = torch.tensor(option[:-1], dtype=torch.long)
            positions[n, start:stop] = torch.arange(prompt, prompt + stop - start)
            visible[n, start:stop, :prompt] = True
            visible[n, start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
            predicted_at = [fork, *range(len(rows), len(rows) + stop - start)]
            rows.extend(n * length + t for t in range(start, stop))
            tokens.extend((row, token, n * width + c) for row, token in zip(predicted_at, option, strict=True))
            start = stop
        mask[n, :start] = True
    token_row, token_id, token_option = torch.tensor(tokens).unbind(1)
    answers = torch.tensor([-1 if example.answer is None else example.answer for example in examples])
    return Batch(
        ids,
        positions,
        mask,
        visible[:, None],
        torch.tensor(rows),
        token_row,
        token_id,
        token_option,
        option_lengths,
        answers,
    )
