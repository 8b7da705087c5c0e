"""The learnable tensors of one stack of Gaussian LoRA layers: theta and phi have the same four."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Low-rank factors of a stack of L layers of one shape (or of a single layer, without the leading L).

    The mean update of a layer is ``scaling * mean_B @ mean_A``. What the scale factors mean, and their rank k, is the
    space's business: logarithms of the standard deviation's factors, say, or the map from a layer's input to its
    output's log variance.
    """

    mean_A: Tensor  # (L, r, d_in)
    mean_B: Tensor  # (L, d_out, r)
    scale_A: Tensor  # (L, k, d_in)
    scale_B: Tensor  # (L, d_out, k)

    @property
    def num_weights(self) -> int:
        """L d_out d_in: how many weights a stack describes."""
        return self.mean_A.shape[0] * self.mean_B.shape[-2] * self.mean_A.shape[-1]

    def unbind(self) -> list["Factors"]:
        """The L single layers, as views: one ``torch.unbind`` per tensor, so one gradient node per tensor."""
        return [Factors(*layer) for layer in zip(*(tensor.unbind(0) for tensor in self), strict=True)]

    def clone_detached(self) -> "Factors":
        """A copy with its own memory and no gradient history; ``requires_grad`` is off."""
        return Factors(*(tensor.detach().clone() for tensor in self))

    @torch.no_grad()
    def copy_(self, other: "Factors") -> "Factors":
        """Overwrite the values in place with those of ``other``, outside the gradient graph; returns self."""
        for mine, theirs in zip(self, other, strict=True):
            mine.copy_(theirs)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Factors":
        """Switch gradients of all four tensors on or off in place; returns self."""
        for tensor in self:
            tensor.requires_grad_(requires_grad)
        return self
