"""Gradient checkpointing: of a decoder block its input alone is kept, and the rest is computed anew when a gradient
comes back through it.

The second computation has to be the first one to the bit. It sees the same adapter and the same random numbers,
although by then other passes may have drawn more of them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from abmll.language.base import BlockWrapper
from abmll.language.targets import decoder_blocks

Scene = Callable[[], AbstractContextManager[object]]


class RecomputedBlock(BlockWrapper):
    """A decoder block for one pass. ``scene`` binds what the block reads besides its input, ``generator`` its noise."""

    def __init__(self, block: nn.Module, scene: Scene, generator: torch.Generator | None) -> None:
        super().__init__(block)
        self.scene = scene
        self.generator = generator

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        state = None if self.generator is None else self.generator.get_state()
        done = False

        def compute(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done:
                with self.scene(), drawing_from(self.generator, state):
                    return self.inner(*args, **kwargs)
            done = True
            return self.inner(*args, **kwargs)

        return checkpoint(compute, hidden, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextmanager
def drawing_from(generator: torch.Generator | None, state: torch.Tensor | None) -> Iterator[None]:
    """Inside, ``generator`` draws what it drew from ``state`` on; then it goes on as if nothing had been drawn."""
    if generator is None or state is None:
        yield
        return
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)


@contextmanager
def recomputed(model: nn.Module, lowest: int, scene: Scene, generator: torch.Generator | None) -> Iterator[None]:
    """Inside, passes keep the inputs of the decoder blocks from ``lowest`` on in place of all activations in them."""
    blocks = decoder_blocks(model)
    own = list(blocks)
    for index in range(lowest, len(own)):
        blocks[index] = RecomputedBlock(own[index], scene, generator)
    try:
        yield
    finally:
        for index in range(lowest, len(own)):
            blocks[index] = own[index]
