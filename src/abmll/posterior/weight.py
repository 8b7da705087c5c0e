"""Gaussian over the adapter's weights (the paper's equations): mu = s B A, sigma_ij = sum_k exp(b_ik + a_kj) + c."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.any_rank import tiled_gamma_negative_log_prior, tiled_kl, tiled_log_sigma_mean
from abmll.posterior.covariance import dense_covariance, rank_one_covariance
from abmll.posterior.kl import rank_one_kl
from abmll.posterior.noise import (
    draw,
    local_std,
    low_rank_noise,
    low_rank_sample,
    random_units,
    shared_directions,
    shared_noise,
)
from abmll.posterior.prior import (
    gamma_constant,
    mean_negative_log_prior,
    num_weights,
    rank_one_gamma_negative_log_prior,
)
from abmll.posterior.space import LayerUpdate, LowRank, Noise, Prior
from abmll.posterior.stacks import Factors


@dataclass(frozen=True)
class WeightSpace:
    """Weight-space Gaussian LoRA; see ``Space`` for what its functions take and return.

    Rank 1 without a floor c is evaluated in closed form, anything else by row tiles.
    Raises ConfigError on a rank below 1, a negative floor or a start that is not finite.
    """

    scaling: float
    sigma_rank: int = 1
    sigma_floor: float = 0.0
    init_log_sigma: float = -5.0

    def __post_init__(self) -> None:
        if self.sigma_rank < 1:
            raise ConfigError(f"sigma_rank is {self.sigma_rank}: give a rank of 1 or more")
        if not 0 <= self.sigma_floor < math.inf:
            raise ConfigError(f"sigma_floor is {self.sigma_floor}: give a number of 0 or more")
        if not math.isfinite(self.init_log_sigma):
            raise ConfigError(f"init_log_sigma is {self.init_log_sigma}: give a finite number")

    @property
    def per_activation(self) -> bool:
        return False

    @property
    def _closed_form(self) -> bool:
        return self.sigma_rank == 1 and self.sigma_floor == 0.0

    def scale_rank(self, r: int) -> int:
        return self.sigma_rank

    def init(self, num_layers: int, d_out: int, d_in: int, r: int, generator: torch.Generator) -> Factors:
        """mean_A as LoRA's A, mean_B zero, and sigma - c = exp(init_log_sigma) everywhere, to rounding.

        At sigma_rank > 1 every column splits that sum at random among the components: equal components would have
        equal gradients and stay equal for ever.
        """
        shape_A, device = (num_layers, self.sigma_rank, d_in), generator.device
        mean_A = kaiming_uniform((num_layers, r, d_in), generator)
        split = torch.randn(shape_A, generator=generator, device=device).log_softmax(dim=1)
        return Factors(
            mean_A=mean_A,
            mean_B=torch.zeros(num_layers, d_out, r, device=device),
            scale_A=split + 0.5 * self.init_log_sigma,
            scale_B=torch.full((num_layers, d_out, self.sigma_rank), 0.5 * self.init_log_sigma, device=device),
        )

    def layers(self, factors: Factors, noise: Noise | None) -> list[LayerUpdate]:
        left, right = self.scaling * factors.mean_B, factors.mean_A
        if noise is None:
            return [LowRank(*layer) for layer in zip(left.unbind(), right.unbind(), strict=True)]
        positive_B, positive_A = self._positive_factors(factors)
        if noise.rank and self._closed_form:
            # Mean and noise in one product of rank r + m, which costs hardly more than the mean alone.
            normal = draw((*positive_B.shape[:2], noise.rank), left, noise.generator)
            joint = torch.cat([left, positive_B * normal], dim=-1)
            directions = shared_directions(positive_A[:, 0], noise)
            stack = zip(joint.unbind(), right.unbind(), positive_A[:, 0].unbind(), directions, strict=True)
            return [_LowRankSample(*layer, noise) for layer in stack]
        stack = zip(left.unbind(), right.unbind(), positive_B.unbind(), positive_A.unbind(), strict=True)
        return [_Sample(*layer, noise) for layer in stack]

    def _positive_factors(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """(L, d_out, k'), (L, k', d_in) with sigma as their product; a floor c is one more component, c times 1.

        For a single layer, without the leading L.
        """
        positive_B, positive_A = factors.scale_B.exp(), factors.scale_A.exp()
        if self.sigma_floor:
            floor = torch.full_like(positive_B[..., :1], self.sigma_floor)
            positive_B = torch.cat([positive_B, floor], dim=-1)
            positive_A = torch.cat([positive_A, torch.ones_like(positive_A[..., :1, :])], dim=-2)
        return positive_B, positive_A

    def kl(self, phi: Factors, theta: Factors) -> Tensor:
        if self._closed_form:
            return rank_one_kl(phi, theta, self.scaling)
        return tiled_kl(phi, theta, self.scaling, self.sigma_floor)

    def negative_log_prior(self, theta: Factors, prior: Prior) -> Tensor:
        means = mean_negative_log_prior(theta, prior, self.scaling)
        if self._closed_form:
            return means + rank_one_gamma_negative_log_prior(theta, prior)
        normaliser = num_weights(theta) * gamma_constant(prior)
        return means + tiled_gamma_negative_log_prior(theta, prior, self.sigma_floor) + normaliser

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        x, gradients = x.to(layer.mean_A.dtype), gradients.to(layer.mean_A.dtype)
        positive_B, positive_A = self._positive_factors(layer)
        if self._closed_form:
            return rank_one_covariance(x * positive_A[0], gradients * positive_B[:, 0])
        return dense_covariance(x, gradients, positive_B @ positive_A)

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        if self._closed_form:
            return (factors.scale_B.mean() + factors.scale_A.mean()).detach()
        return tiled_log_sigma_mean(factors, self.sigma_floor)


@dataclass(frozen=True)
class _LowRankSample:
    """Update of one layer with noise of rank m, sigma of rank 1: left (d_out, r + m) holds mean and noise factors."""

    left: Tensor
    right: Tensor  # (r, d_in)
    positive_A: Tensor  # (d_in,)
    directions: Tensor | None  # (d_in, m), shared noise only
    noise: Noise

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.right.dtype)
        units = random_units(x, self.noise) if self.directions is None else F.normalize(x @ self.directions, dim=-1)
        return low_rank_sample(x, self.left, self.right, self.positive_A, units)


@dataclass(frozen=True)
class _Sample:
    """Update of one layer with exact noise, or a sigma of higher rank."""

    left: Tensor  # (d_out, r)
    right: Tensor  # (r, d_in)
    positive_B: Tensor  # (d_out, k)
    positive_A: Tensor  # (k, d_in)
    noise: Noise

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.right.dtype)
        mean, noise = LowRank(self.left, self.right)(x), self.noise
        if noise.rank:
            return mean + low_rank_noise(x, self.positive_B, self.positive_A, noise)
        if noise.kind == "local":
            std = local_std(x, self.positive_B, self.positive_A)
            return torch.addcmul(mean, std, draw(tuple(std.shape), std, noise.generator))
        return mean + shared_noise(x, self.positive_B, self.positive_A, noise.mask, noise.generator)


def kaiming_uniform(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """LoRA's start of A (L, r, d_in): Kaiming-uniform with a = sqrt(5), which is uniform within 1 / sqrt(d_in)."""
    bound = 1.0 / math.sqrt(shape[-1])
    return torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)
