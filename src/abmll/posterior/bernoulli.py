"""Dropout on the adapter's input as a distribution over weights: y = s B A (m * x) / (1 - p), m_j = 0 with chance p.

Monte Carlo dropout (Gal and Ghahramani, arXiv 1506.02142) on LoRA. There is nothing to learn of the noise: the scale
factors are empty, (L, 0, d_in) and (L, d_out, 0), and there is no divergence.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.posterior.space import LayerUpdate, LowRank, Noise, Space, low_rank_updates
from abmll.posterior.stacks import Factors


@dataclass(frozen=True)
class DropoutSpace(Space):
    """LoRA with dropout.

    ``shared`` noise draws one mask a pass and layer, over the d_in inputs: a weight sample, which drops columns of A
    for every token and example alike. ``local`` noise draws a mask for every token, as training with dropout does.
    Raises ConfigError on a rate outside [0, 1).
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"dropout_rate is {self.rate}: give a number of 0 or more and below 1")

    def init_scales(self, mean_A: Tensor, mean_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return mean_A[:, :0].clone(), mean_B[..., :0].clone()

    @property
    def sample_components(self) -> int:
        return 0

    def plain_sample(self, factors: Factors, directions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Exact, at the mean's rank; ``directions`` are of no meaning here."""
        left, right = self.scaling * factors.mean_B, factors.mean_A
        return left, right * _mask((len(right), 1, right.shape[-1]), self.rate, right, generator)

    def noisy_layers(self, factors: Factors, noise: Noise) -> list[LayerUpdate]:
        if noise.kind == "shared":
            return low_rank_updates(*self.plain_sample(factors, 0, noise.generator))
        left, right = self.scaling * factors.mean_B, factors.mean_A
        stack = zip(left.unbind(), right.unbind(), strict=True)
        return [_LocalDropout(LowRank(*layer), self.rate, noise.generator) for layer in stack]

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """Of a shared mask, exactly: sum_j c_j c'_j p / (1 - p) for c_j = sum_t (s A^T B^T g_t)_j x_tj."""
        x, gradients = x.to(layer.mean_A.dtype), self.scaling * gradients.to(layer.mean_A.dtype)
        by_input = ((gradients @ layer.mean_B @ layer.mean_A) * x[:, None]).sum(2)
        return by_input @ by_input.mT * (self.rate / (1 - self.rate))

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        """Log of sqrt(p / (1 - p)), the standard deviation of an input relative to its size; -inf without dropout."""
        odds = self.rate / (1 - self.rate)
        return factors.mean_A.new_tensor(0.5 * math.log(odds) if odds else -math.inf)


@dataclass(frozen=True)
class _LocalDropout:
    """Update of one layer with a mask of its own for every token."""

    update: LowRank
    rate: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.update.right.dtype)
        return self.update(x * _mask(x.shape, self.rate, x, self.generator))


def _mask(shape: tuple[int, ...], rate: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """0 with probability ``rate``, else 1 / (1 - rate)."""
    kept = torch.rand(shape, generator=generator, device=like.device) >= rate
    return kept.to(like.dtype) / (1 - rate)
