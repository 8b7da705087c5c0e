"""Pruning of outputs: in every adapted layer each token loses the smallest part of the layer's output.

The paper's study of robustness: a method whose answers survive has not spread them over many small numbers. It is for
prediction only; nothing is learned under it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from abmll.common.errors import ConfigError
from abmll.language.scorer import OptionScorer


def prune_smallest(output: Tensor, share: float) -> Tensor:
    """``output`` (..., d) with the ``share`` of smallest magnitude along d set to zero; floor(share d) numbers each."""
    count = int(share * output.shape[-1] + 1e-9)  # 0.29 of 100 are 29, whatever the product rounds to
    if count == 0:
        return output
    smallest = output.abs().topk(count, dim=-1, largest=False, sorted=False).indices
    return torch.scatter(output, -1, smallest, 0.0)


@contextmanager
def pruned(scorer: OptionScorer, share: float) -> Iterator[None]:
    """Inside, every adapted layer's whole output, the frozen layer's part and the adapter's together, is pruned.

    Layers without an adapter are left alone, as in the paper. Raises ``ConfigError`` for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"prune is {share}; use shares of at least 0 and below 1")
    hook = partial(_hook, share)
    handles = [layer.register_forward_hook(hook) for layer in scorer.adapted.values()] if share else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(share: float, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return prune_smallest(output, share)
