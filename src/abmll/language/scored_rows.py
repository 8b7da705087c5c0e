"""The last block's MLP at the scored positions alone: nothing above it reads the others.

Its attention still needs every position's keys and values, so they all pass through the rest of the block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from abmll.language.targets import blocks_path


class ScoredRows:
    """Lets a model's last MLP compute some positions of a row only; elsewhere its output is zero."""

    def __init__(self, model: nn.Module) -> None:
        """``model`` is changed by hooks that do nothing until ``only`` says so; no MLP of that name, no hooks."""
        blocks = model.get_submodule(blocks_path(model))
        assert isinstance(blocks, nn.ModuleList)
        mlp = getattr(blocks[-1], "mlp", None)
        self.rows: Tensor | None = None
        self.length = 0
        if isinstance(mlp, nn.Module):
            mlp.register_forward_pre_hook(self._choose)
            mlp.register_forward_hook(self._put_back)

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Inside, a forward pass over one row (1, L, d) computes the positions ``rows`` (H,) only."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None

    def _choose(self, mlp: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.rows is None:
            return args
        hidden, *others = args
        self.length = hidden.shape[1]
        return (hidden.index_select(1, self.rows), *others)

    def _put_back(self, mlp: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.rows is None:
            return output
        first, *others = output if isinstance(output, tuple) else (output,)
        whole = first.new_zeros(1, self.length, first.shape[-1]).index_copy(1, self.rows, first)
        return (whole, *others) if isinstance(output, tuple) else whole
