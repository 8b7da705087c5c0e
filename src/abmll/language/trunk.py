"""The frozen trunk: decoder blocks below the lowest adapted layer, computed once and then skipped.

Their output for a given input never changes, so posterior samples, gradient steps and methods can share it. The
model's own forward runs every time (masks, positions, embeddings are cheap and differ between families); only the
blocks themselves are skipped, and the last of them answers with the stored activations.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.language.targets import blocks_path


class TrunkBlock(nn.Module):
    """A frozen decoder block that can be passed over."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.replay: Tensor | None = None
        self.skip = False
        self.output: object = None
        self.record = False

    def __getattr__(self, name: str) -> Any:
        """The block's own attributes: some models ask a block which kind of attention mask it takes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.replay is not None:
            return self.replay
        if self.skip:
            return hidden
        output = self.block(hidden, *args, **kwargs)
        if self.record:
            self.output = output
        return output


class Trunk:
    """The first ``depth`` decoder blocks of a model, wrapped in place."""

    def __init__(self, model: nn.Module, depth: int) -> None:
        blocks = model.get_submodule(blocks_path(model))
        assert isinstance(blocks, nn.ModuleList)
        self.blocks = [TrunkBlock(blocks[index]) for index in range(depth)]
        for index, block in enumerate(self.blocks):
            blocks[index] = block

    def output(self, forward: Callable[[], object]) -> Tensor | None:
        """The trunk's output (N, T, d) during ``forward``, a pass of the model.

        None where the model's blocks answer with more than one tensor: such blocks cannot be skipped.
        """
        last = self.blocks[-1]
        last.record = True
        try:
            forward()
            output = last.output
        finally:
            last.record, last.output = False, None
        return output if isinstance(output, Tensor) else None

    @contextmanager
    def replayed(self, hidden: Tensor) -> Iterator[None]:
        """Inside, a forward pass starts from the trunk's stored output ``hidden`` (N, T, d)."""
        for block in self.blocks:
            block.skip = True
        self.blocks[-1].replay = hidden
        try:
            yield
        finally:
            self.blocks[-1].replay = None
            for block in self.blocks:
                block.skip = False


class TrunkCache:
    """Trunk activations of single examples, kept in memory up to a number of bytes; the longest unused leave first.

    It belongs to one model and one choice of adapted layers: examples alone are its keys.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.kept: OrderedDict[Encoded, Tensor] = OrderedDict()

    def attach(self, batch: Batch, examples: Sequence[Encoded], compute: Callable[[Encoded], Tensor]) -> Batch:
        """``batch`` with the trunk of its ``examples``; ``compute`` gives the (1, T, d) of one that is not kept."""
        rows = [self._lookup(example, compute) for example in examples]
        trunk = rows[0].new_zeros(*batch.mask.shape, rows[0].shape[-1])
        for n, row in enumerate(rows):
            trunk[n, : len(row)] = row
        return replace(batch, trunk=trunk)

    def _lookup(self, example: Encoded, compute: Callable[[Encoded], Tensor]) -> Tensor:
        if example in self.kept:
            self.kept.move_to_end(example)
            return self.kept[example]
        row = compute(example)[0]
        self.kept[example] = row
        self.num_bytes += row.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self.kept.popitem(last=False)[1].nbytes
        return row
