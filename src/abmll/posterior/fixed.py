"""A sample of a Gaussian adapter as one function, the same at every pass.

A pass over whole sequences may draw its noise from the very inputs that it sees. Where tokens are written one after the
other, each step is a pass of its own, and the sample must outlive it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.space import LayerUpdate, LowRank, Noise, Space
from abmll.posterior.stacks import Factors


def fixed_layers(space: Space, factors: Factors, generator: torch.Generator) -> list[LayerUpdate]:
    """One sample of a stack's L layers; ``generator`` is on the factors' device.

    A sample of the weights is kept as such: as factors where it has their rank, else as a matrix (d_out, d_in) in the
    factors' dtype. Where the noise is the outputs' own it is the same at every token of a row, and at every pass.
    """
    if space.per_activation:
        seeds = torch.randint(2**62, (len(factors.mean_A),), generator=generator, device=generator.device).tolist()
        noise = Noise("shared", torch.Generator(generator.device))
        layers = space.layers(factors, noise)
        return [_Repeated(layer, noise.generator, seed) for layer, seed in zip(layers, seeds, strict=True)]
    inputs = torch.eye(factors.mean_A.shape[-1], dtype=factors.mean_A.dtype, device=factors.mean_A.device)[None]
    layers = space.layers(factors, Noise("shared", generator))
    # What a linear function makes of the identity is its matrix.
    return [layer if isinstance(layer, LowRank) else _Matrix(layer(inputs)[0].mT) for layer in layers]


@dataclass(frozen=True)
class _Matrix:
    """A layer's sampled update."""

    weight: Tensor  # (d_out, d_in)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight)


@dataclass(frozen=True)
class _Repeated:
    """A layer's update that draws the same numbers at every pass."""

    update: LayerUpdate
    generator: torch.Generator
    seed: int

    def __call__(self, x: Tensor) -> Tensor:
        self.generator.manual_seed(self.seed)
        return self.update(x)
