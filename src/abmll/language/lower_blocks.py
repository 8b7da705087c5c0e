"""The frozen lower_blocks: decoder blocks below the lowest adapted layer, computed once and then skipped.

Their output for a given input never changes, so posterior samples, gradient steps and methods can share it. The
model's own forward runs every time (masks, positions, embeddings are cheap and differ between families); only the
blocks themselves are skipped, and the last of them answers with the stored activations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from abmll.language.targets import blocks_path


class _LowerBlocksDone(Exception):
    """Ends a pass of the model once the lower blocks's output is known: no error, but the blocks above have nothing to do."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


class SkippableBlock(nn.Module):
    """A frozen decoder block that can be passed over."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.replay: Tensor | None = None
        self.skip = False
        self.is_asked = False

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
        if self.is_asked:
            raise _LowerBlocksDone(output)
        return output


class LowerBlocks:
    """The first ``depth`` decoder blocks of a model, wrapped in place."""

    def __init__(self, model: nn.Module, depth: int) -> None:
        blocks = model.get_submodule(blocks_path(model))
        assert isinstance(blocks, nn.ModuleList)
        self.blocks = [SkippableBlock(blocks[index]) for index in range(depth)]
        for index, block in enumerate(self.blocks):
            blocks[index] = block

    def output(self, forward: Callable[[], object]) -> Tensor | None:
        """The lower blocks's output (N, T, d) during ``forward``, a pass of the model that ends there.

        None where the model's blocks answer with more than one tensor: such blocks cannot be skipped.
        """
        last, output = self.blocks[-1], None
        last.is_asked = True
        try:
            forward()
        except _LowerBlocksDone as done:
            output = done.output
        finally:
            last.is_asked = False
        return output if isinstance(output, Tensor) else None

    @contextmanager
    def replayed(self, hidden: Tensor) -> Iterator[None]:
        """Inside, a forward pass starts from the lower blocks's stored output ``hidden`` (N, T, d)."""
        for block in self.blocks:
            block.skip = True
        self.blocks[-1].replay = hidden
        try:
            yield
        finally:
            self.blocks[-1].replay = None
            for block in self.blocks:
                block.skip = False
