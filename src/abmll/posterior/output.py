"""Gaussian over the adapter's output (the authors' code): mu(x) = s B A x, log sigma^2(x) = s B' A' x + log c^2."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.noise import draw, random_units
from abmll.posterior.prior import gamma_constant, gaussian_constant
from abmll.posterior.space import LayerUpdate, LowRank, Noise, Prior, Recorder
from abmll.posterior.stacks import Factors
from abmll.posterior.tokenwise import gaussian_kl, perturbed
from abmll.posterior.weight import kaiming_uniform


@dataclass(frozen=True)
class OutputSpace:
    """Output-space Gaussian LoRA; see ``Space`` for what its functions take and return.

    scale_A and scale_B are A' and B' above, of the means' rank; log c^2 is twice ``init_log_sigma``.
    Raises ConfigError on an init_log_sigma that is not finite.
    """

    scaling: float
    init_log_sigma: float = -5.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.init_log_sigma):
            raise ConfigError(f"init_log_sigma is {self.init_log_sigma}: give a finite number")

    @property
    def per_activation(self) -> bool:
        return True

    def scale_rank(self, r: int) -> int:
        return r

    def init(self, num_layers: int, d_out: int, d_in: int, r: int, generator: torch.Generator) -> Factors:
        """A and A' as LoRA's A, B and B' zero: mean 0 and log variance 2 init_log_sigma whatever the input."""
        return Factors(
            mean_A=kaiming_uniform((num_layers, r, d_in), generator),
            mean_B=torch.zeros(num_layers, d_out, r, device=generator.device),
            scale_A=kaiming_uniform((num_layers, r, d_in), generator),
            scale_B=torch.zeros(num_layers, d_out, r, device=generator.device),
        )

    def layers(self, factors: Factors, noise: Noise | None) -> list[LayerUpdate]:
        if noise is None:
            stack = zip((self.scaling * factors.mean_B).unbind(), factors.mean_A.unbind(), strict=True)
            return [LowRank(*layer) for layer in stack]
        return [*self._samples(factors, (), noise)]

    def recorders(self, phi: Factors, theta: Factors, noise: Noise | None) -> list[Recorder]:
        """Coefficients (R, L, 4 r): A x and A' x of phi, then phi's less theta's, from the factors' own differences."""
        return [*self._samples(phi, (phi.mean_A - theta.mean_A, phi.scale_A - theta.scale_A), noise)]

    def _samples(self, phi: Factors, more: tuple[Tensor, ...], noise: Noise | None) -> list["_Sample"]:
        rights = torch.cat([phi.mean_A, phi.scale_A, *more], dim=1).unbind()
        lefts = (self.scaling * phi.mean_B).unbind(), (0.5 * self.scaling * phi.scale_B).unbind()
        return [_Sample(*layer, self.init_log_sigma, noise) for layer in zip(*lefts, rights, strict=True)]

    def activation_kl(self, phi: Factors, theta: Factors, coefficients: Tensor, counts: Tensor | None) -> Tensor:
        """sum of 1/2 [exp(d) - 1 - d + (mu - mu')^2 exp(-v')]: v' is theta's log variance, d is phi's less theta's."""
        mean, scale, d_mean, d_scale = coefficients.chunk(4, dim=-1)
        # v' = s B' A' x + 2 init_log_sigma: the constant is one more coefficient.
        constant, one = torch.full_like(scale[..., :1], 2.0 * self.init_log_sigma), torch.ones_like(scale[:, :1, :1])
        one = one.expand(-1, -1, theta.scale_B.shape[1])
        return gaussian_kl(
            (torch.cat([scale, d_scale], dim=-1), self._difference(phi.scale_B, theta.scale_B)),
            (torch.cat([mean, d_mean], dim=-1), self._difference(phi.mean_B, theta.mean_B)),
            (torch.cat([scale - d_scale, constant], dim=-1), torch.cat([self.scaling * theta.scale_B.mT, one], dim=1)),
            counts,
        )

    def _difference(self, phi_B: Tensor, theta_B: Tensor) -> Tensor:
        """(L, 2 r, d_out): s (B A - B' A') x is [A x, (A - A') x] times this, and nothing cancels near equality."""
        return self.scaling * torch.cat([phi_B - theta_B, theta_B], dim=-1).mT

    def activation_negative_log_prior(
        self, theta: Factors, prior: Prior, coefficients: Tensor, counts: Tensor | None
    ) -> Tensor:
        mean, scale, d_mean, d_scale = coefficients.chunk(4, dim=-1)
        mu = self.scaling * (mean - d_mean) @ theta.mean_B.mT
        log_sigma = 0.5 * self.scaling * (scale - d_scale) @ theta.scale_B.mT + self.init_log_sigma
        by_token = (
            mu.square().sum((0, 2)) / (2 * prior.std**2)
            + 2 * (prior.gamma_shape - 1) * log_sigma.sum((0, 2))
            + prior.gamma_rate * torch.exp(-2 * log_sigma).sum((0, 2))
            + len(mu) * mu.shape[-1] * (gaussian_constant(prior) + gamma_constant(prior))
        )
        return by_token.sum() if counts is None else by_token @ counts

    def kl(self, phi: Factors, theta: Factors) -> Tensor:
        raise NotImplementedError("output space has no KL without inputs: call activation_kl()")

    def negative_log_prior(self, theta: Factors, prior: Prior) -> Tensor:
        raise NotImplementedError("output space has no prior without inputs: call activation_negative_log_prior()")

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """Every token and channel has noise of its own here: sum_ti g_ti g'_ti sigma_ti^2."""
        x, gradients = x.to(layer.mean_A.dtype), gradients.to(layer.mean_A.dtype)
        half_log_variance = 0.5 * self.scaling * F.linear(F.linear(x, layer.scale_A), layer.scale_B)
        sigma = torch.exp(half_log_variance + self.init_log_sigma)
        scaled = (gradients * sigma[:, None]).flatten(2)
        return scaled @ scaled.mT

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        return factors.mean_A.new_tensor(self.init_log_sigma)


@dataclass(frozen=True)
class _Sample:
    """Update of one layer, at the mean or with noise; coefficients from 2 r on are not its own business."""

    mean_B: Tensor  # (d_out, r), times s
    half_B: Tensor  # (d_out, r), scale_B times s / 2
    right: Tensor  # (c, d_in): mean_A, scale_A, and whatever else is to be multiplied by the input
    init_log_sigma: float
    noise: Noise | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.update(self.coefficients(x))

    def coefficients(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.right.dtype), self.right)

    def update(self, coefficients: Tensor) -> Tensor:
        r = self.mean_B.shape[1]
        mean, half = coefficients[..., :r], coefficients[..., r : 2 * r]
        if self.noise is None:
            return F.linear(mean, self.mean_B)
        shape = (*coefficients.shape[:-1], len(self.mean_B))
        normal = self._normal(coefficients, self.noise).expand(shape).flatten(0, -2)
        pairs = (mean.flatten(0, -2), self.mean_B, half.flatten(0, -2), self.half_B)
        return perturbed(*pairs, normal, self.init_log_sigma).view(shape)

    def _normal(self, coefficients: Tensor, noise: Noise) -> Tensor:
        """Standard normal numbers (R, L, d_out), or (R, 1, d_out) where all tokens of a row share them."""
        (num_rows, num_tokens, _), d_out = coefficients.shape, len(self.mean_B)
        if noise.kind == "local" and noise.rank:
            normal = draw((d_out, noise.rank), coefficients, noise.generator)
            return F.linear(random_units(coefficients, noise), normal)
        return draw((num_rows, 1 if noise.kind == "shared" else num_tokens, d_out), coefficients, noise.generator)
