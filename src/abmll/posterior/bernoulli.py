"""Dropout on the adapter's input as a distribution over weights: y = s B A (m * x) / (1 - p), m_j = 0 with chance p.

Monte Carlo dropout (Gal and Ghahramani, arXiv 1506.02142) on LoRA. There is nothing to learn of the noise: the scale
factors are empty, (L, 0, d_in) and (L, d_out, 0), and there is no divergence.
"""

import math
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.space import LayerUpdate, LowRank, Noise, Prior
from abmll.posterior.stacks import Factors
from abmll.posterior.weight import kaiming_uniform


@dataclass(frozen=True)
class DropoutSpace:
    """LoRA with dropout; see ``Space`` for what its functions take and return.

    ``shared`` noise draws one mask a pass and layer, over the d_in inputs: a weight sample, which drops columns of A
    for every token and example alike. ``local`` noise draws a mask for every token, as training with dropout does.
    Raises ConfigError on a rate outside [0, 1).
    """

    scaling: float
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"dropout_rate is {self.rate}: give a number of 0 or more and below 1")

    @property
    def per_activation(self) -> bool:
        return False

    def scale_rank(self, r: int) -> int:
        return 0

    def init(self, num_layers: int, d_out: int, d_in: int, r: int, generator: torch.Generator) -> Factors:
        """mean_A as LoRA's A, mean_B zero."""
        device = generator.device
        return Factors(
            mean_A=kaiming_uniform((num_layers, r, d_in), generator),
            mean_B=torch.zeros(num_layers, d_out, r, device=device),
            scale_A=torch.zeros(num_layers, 0, d_in, device=device),
            scale_B=torch.zeros(num_layers, d_out, 0, device=device),
        )

    def layers(self, factors: Factors, noise: Noise | None) -> list[LayerUpdate]:
        left, right = self.scaling * factors.mean_B, factors.mean_A
        if noise is not None and noise.kind == "shared":
            right = right * _mask((len(right), 1, right.shape[-1]), self.rate, right, noise.generator)
        updates = [LowRank(*layer) for layer in zip(left.unbind(), right.unbind(), strict=True)]
        if noise is None or noise.kind == "shared":
            return list(updates)
        return [_Dropped(update, self.rate, noise.generator) for update in updates]

    def kl(self, phi: Factors, theta: Factors) -> NoReturn:
        raise ConfigError("space is 'dropout', which has no divergence; use 'weight', 'output' or 'factor'")

    def negative_log_prior(self, theta: Factors, prior: Prior) -> NoReturn:
        raise ConfigError("space is 'dropout', which has no prior; use 'weight', 'output' or 'factor'")

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
class _Dropped:
    """Update of one layer with a mask of its own for every token."""

    update: LowRank
    rate: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.update.right.dtype)
        return F.linear(F.linear(x * _mask(x.shape, self.rate, x, self.generator), self.update.right), self.update.left)


def _mask(shape: tuple[int, ...], rate: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """0 with probability ``rate``, else 1 / (1 - rate)."""
    kept = torch.rand(shape, generator=generator, device=like.device) >= rate
    return kept.to(like.dtype) / (1 - rate)
