"""Sums over large products of thin factors, a tile at a time, gradients taken in the same pass.

The products have d_out d_in numbers a layer. Only a few tiles of them exist at any time, in memory that all tiles
share, and nothing large is kept for the backward pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Evaluate = Callable[..., tuple[Tensor, Gradients]]


class _ScalarWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        evaluate, *tensors = args
        value, gradients = evaluate(*tensors)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Gradients:
        # torch's once_differentiable would not notice here: the saved gradients are constants, so a second
        # derivative through this term would silently be zero.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "this term (of output space, sigma_rank > 1 or a floor) is differentiable only once"
            )
        return (None, *(None if gradient is None else grad_outputs[0] * gradient for gradient in ctx.saved_tensors))


def wanted(*tensors: Tensor) -> bool:
    """Whether anybody will ask for the gradient of any of them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def in_one_pass(evaluate: Evaluate, tensors: Sequence[Tensor]) -> Tensor:
    """The scalar that ``evaluate`` returns for ``tensors``, together with its gradient for each (None: not needed)."""
    return cast(Tensor, _ScalarWithGradients.apply(evaluate, *tensors))


def row_tiles(num_layers: int, d_out: int, d_in: int, device: torch.device) -> list[slice]:
    """Slices of the d_out rows such that a (num_layers, rows, d_in) tile fits a CPU's cache, or fills a GPU."""
    rows = max(1, tile_elements(device) // (num_layers * d_in))
    return [slice(start, min(start + rows, d_out)) for start in range(0, d_out, rows)]


def tile_elements(device: torch.device) -> int:
    return 2**18 if device.type == "cpu" else 2**23


class Tiles:
    """The tiles of L matrices d_out x d_in, whole layers as far as they fit, and the buffers that they share."""

    def __init__(self, left: Tensor, right: Tensor, buffers: int) -> None:
        """``left`` (L, d_out, k) and ``right`` (L, k, d_in) say what the matrices' shape, dtype and device are."""
        self.num_layers, self.d_out, self.d_in = left.shape[0], left.shape[1], right.shape[2]
        self.device = left.device
        self.layers = min(max(1, tile_elements(self.device) // (self.d_out * self.d_in)), self.num_layers)
        largest = max(rows.stop - rows.start for rows in self._rows(self.layers)) * self.layers * self.d_in
        self.memory = left.new_empty(buffers, largest)

    def _rows(self, layers: int) -> list[slice]:
        return row_tiles(layers, self.d_out, self.d_in, self.device)

    def __iter__(self) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """The layers and rows of each tile, and its buffers (layers, rows, d_in) with whatever the last tile left."""
        for start in range(0, self.num_layers, self.layers):
            layers = slice(start, min(start + self.layers, self.num_layers))
            for rows in self._rows(layers.stop - start):
                shape = (layers.stop - start, rows.stop - rows.start, self.d_in)
                yield layers, rows, [buffer[: math.prod(shape)].view(shape) for buffer in self.memory]


class ProductGradient:
    """The gradients of ``left`` (L, d_out, k) and ``right`` (L, k, d_in), from tiles of that of their product.

    ``rows`` says of how many of the k rows of ``right`` it is taken; None: of all.
    """

    def __init__(self, left: Tensor, right: Tensor, wanted: bool, rows: int | None = None) -> None:
        self.left, self.right = left, right
        self.by_left = left.new_empty(left.mT.shape)  # transposed: faster than the other way round
        self.by_right = torch.zeros_like(right[:, :rows], memory_format=torch.contiguous_format)
        self.wanted = wanted

    def add(self, layers: slice, rows: slice, by_product: Tensor) -> None:
        """Take in a tile, where the gradients are wanted."""
        if not self.wanted:
            return
        self.by_left[layers, :, rows].baddbmm_(self.right[layers], by_product.mT, beta=0)
        if learned := self.by_right.shape[1]:
            self.by_right[layers].baddbmm_(self.left[layers, rows, :learned].mT, by_product)

    def gradients(self, factor: float) -> tuple[Tensor, Tensor]:
        """Of right and left, times ``factor``."""
        return self.by_right.mul_(factor), self.by_left.mul_(factor).mT

    def result(self, factor: float) -> Gradients:
        """The same; None where they are not wanted."""
        return self.gradients(factor) if self.wanted else (None, None)

    def result_of_logarithms(self, factor: float) -> Gradients:
        """The same where right and left are exponentials, of their logarithms."""
        self.by_right.mul_(self.right)
        self.by_left.mul_(self.left.mT)
        return self.result(factor)
