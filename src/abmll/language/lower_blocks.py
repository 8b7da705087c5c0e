"""The frozen decoder blocks below the lowest adapted layer: computed once for an input, and skipped from then on.

Their output never changes, so gradient steps, posterior samples and methods can share it. The model's own forward runs
every time (masks, positions and embeddings are cheap, and families differ in them); only the blocks are skipped.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from abmll.language.base import BlockWrapper
from abmll.language.batch import Batch, batches_of_like_length, make_batch, shared_prefix
from abmll.language.check import probe_example
from abmll.language.encoding import Encoded
from abmll.language.forward import hidden_states
from abmll.language.targets import decoder_blocks

READ_AT_ONCE = 768  # tokens behind the shared prefix that one pass reads: examples of like length, as attention pads


class _Reached(Exception):
    """Ends a pass of the model once the lower blocks' output is known. It is no error."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


class SkippableBlock(BlockWrapper):
    """A frozen decoder block that can be passed over."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.answer: Tensor | None = None  # what it gives instead of computing
        self.ends_pass = False

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.answer is not None:
            return self.answer
        output = self.inner(hidden, *args, **kwargs)
        if self.ends_pass:
            raise _Reached(output)
        return output


class LowerBlocks:
    """The first ``depth`` decoder blocks of a model, wrapped in place. ``packed``: it reads packed batches.

    ``blocks`` is empty where the depth is 0, and where a block gives more than one tensor, which cannot be stored.
    """

    def __init__(self, model: PreTrainedModel, depth: int, packed: bool) -> None:
        self.model = model
        self.packed = packed
        can_be_exact = packed and model.dtype == torch.bfloat16 and model.device.type == "cpu"
        self.packs_exactly = None if can_be_exact else False  # None: not known yet
        blocks = decoder_blocks(model)
        self.blocks = [SkippableBlock(block) for block in blocks[:depth]]
        for index, block in enumerate(self.blocks):
            blocks[index] = block
        if self.blocks and not isinstance(self._last_output(self._batch([probe_example(model)])), Tensor):
            self.blocks = []

    def output(self, batch: Batch) -> Tensor:
        """Their output (R, L, d). Raises ``ValueError`` where there are no such blocks."""
        if not self.blocks:
            raise ValueError("the first block has an adapter, or this model's blocks cannot be skipped")
        output = self._last_output(batch)
        assert isinstance(output, Tensor)
        return output.to(batch.input_ids.device)

    def fill(self, batch: Batch) -> Batch:
        """The batch with its ``lower`` computed, so that several passes share it; as it is where that cannot be."""
        return batch if batch.lower is not None or not self.blocks else replace(batch, lower=self.output(batch))

    def fill_together(self, batches: list[Batch], groups: Sequence[Sequence[Encoded]]) -> list[Batch]:
        """The batches of these groups of examples with their ``lower``, read as in ``read_together``."""
        if not self.blocks:
            return batches
        rows = iter(self.read_together(list(chain(*groups))))
        return [batch.with_lower(list(islice(rows, len(group)))) for batch, group in zip(batches, groups, strict=True)]

    def read_together(self, examples: Sequence[Encoded]) -> list[Tensor]:
        """The output (T, d) for each example; there are such blocks.

        What all prompts begin with is not read again for every batch, but for every ``READ_AT_ONCE`` tokens behind it.
        """
        prefix = shared_prefix([example.prompt for example in examples]) if self.packed else 0
        found: dict[int, Tensor] = {}
        for chosen in batches_of_like_length(examples, prefix + READ_AT_ONCE, prefix):
            found |= zip(chosen, self._in_one_pass([examples[index] for index in chosen], True), strict=True)
        return [found[index] for index in range(len(examples))]

    def rows(self, examples: Sequence[Encoded]) -> list[Tensor]:
        """The output (T, d) for each example, to the bit what it is alone, so that a resumed run sees the same.

        One packed row is half the work of a row each. In bf16, whose sums are rounded to 8 bits, packing was seen to
        change none of them on a CPU. The first batch is computed both ways; if it differs here, rows stay alone.
        """
        if len(examples) == 1 or self.packs_exactly is False:
            return self._one_by_one(examples)
        packed = self._in_one_pass(examples, share_prefix=False)
        if self.packs_exactly is None:
            alone = self._one_by_one(examples)
            self.packs_exactly = all(map(torch.equal, alone, packed))
            return alone
        return packed

    @contextmanager
    def skipped(self, output: Tensor) -> Iterator[None]:
        """Inside, passes of the model start from the ``output`` (R, L, d) of these blocks."""
        for block in self.blocks:
            block.answer = output
        try:
            yield
        finally:
            for block in self.blocks:
                block.answer = None

    def _one_by_one(self, examples: Sequence[Encoded]) -> list[Tensor]:
        return [self.output(self._batch([example]))[0] for example in examples]

    def _in_one_pass(self, examples: Sequence[Encoded], share_prefix: bool) -> list[Tensor]:
        batch, lengths = self._batch(examples, share_prefix), [len(example) for example in examples]
        output = self.output(batch)
        if batch.packing is not None:
            return batch.packing.take_apart(output[0], lengths)
        return [row[:length] for row, length in zip(output, lengths, strict=True)]

    def _batch(self, examples: Sequence[Encoded], share_prefix: bool = True) -> Batch:
        return make_batch(self.model, examples, self.packed, share_prefix)

    @torch.no_grad()
    def _last_output(self, batch: Batch) -> object:
        last = self.blocks[-1]
        last.ends_pass = True
        try:
            return hidden_states(self.model, batch)
        except _Reached as reached:
            return reached.output
        finally:
            last.ends_pass = False
