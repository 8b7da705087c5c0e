"""Gaussian over the adapter's output (the authors' code): mu(x) = s B A x, log sigma^2(x) = s B' A' x + log c^2."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.errors import ConfigError
from abmll.posterior.factors import Factors
from abmll.posterior.noise import draw, random_units
from abmll.posterior.numerics import differentiable_exp_excess
from abmll.posterior.prior import gamma_constant, gaussian_constant
from abmll.posterior.space import LayerUpdate, LowRank, Noise, Prior
from abmll.posterior.weight import kaiming_uniform


@dataclass(frozen=True)
class OutputSpace:
    """Output-space Gaussian LoRA; see ``Space`` for what its functions take and return.

    scale_A and scale_B are A' and B' above, of the means' rank; log c^2 is twice ``init_log_sigma``.
    Raises ConfigError on an init_log_sigma that is not finite.
    """

    scaling: float
    init_log_sigma: float = -4.0

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
        scaled = factors._replace(mean_B=self.scaling * factors.mean_B, scale_B=self.scaling * factors.scale_B)
        means = [LowRank(layer.mean_B, layer.mean_A) for layer in scaled.unbind()]
        if noise is None:
            return list(means)
        log_variances = [LowRank(layer.scale_B, layer.scale_A) for layer in scaled.unbind()]
        pairs = zip(means, log_variances, strict=True)
        return [_Sample(mean, log_variance, self.init_log_sigma, noise) for mean, log_variance in pairs]

    def _low_rank(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """scaling * left @ right @ x for every token: (..., d_in) -> (..., d_out)."""
        return F.linear(F.linear(x, right), self.scaling * left)

    def _difference(self, x: Tensor, left: Tensor, right: Tensor, left0: Tensor, right0: Tensor) -> Tensor:
        """scaling * (left right - left0 right0) x from the factors' differences, so nothing cancels near equality."""
        return self._low_rank(x, torch.cat([left - left0, left0], dim=1), torch.cat([right, right - right0], dim=0))

    def activation_kl(self, phi_layer: Factors, theta_layer: Factors, x: Tensor, mask: Tensor | None) -> Tensor:
        """sum of 1/2 [exp(d) - 1 - d + (mu - mu')^2 exp(-v')]: v' is theta's log variance, d is phi's less theta's."""
        tokens = (x if mask is None else x[mask]).to(theta_layer.mean_A.dtype)
        phi, theta = phi_layer, theta_layer
        d_mean = self._difference(tokens, phi.mean_B, phi.mean_A, theta.mean_B, theta.mean_A)
        d_log_variance = self._difference(tokens, phi.scale_B, phi.scale_A, theta.scale_B, theta.scale_A)
        log_std = 0.5 * self._low_rank(tokens, theta.scale_B, theta.scale_A) + self.init_log_sigma
        distance = d_mean * torch.exp(-log_std)
        return 0.5 * (differentiable_exp_excess(d_log_variance).sum() + distance.square().sum())

    def activation_negative_log_prior(
        self, theta_layer: Factors, prior: Prior, x: Tensor, mask: Tensor | None
    ) -> Tensor:
        tokens = (x if mask is None else x[mask]).to(theta_layer.mean_A.dtype)
        mean = self._low_rank(tokens, theta_layer.mean_B, theta_layer.mean_A)
        log_sigma = 0.5 * self._low_rank(tokens, theta_layer.scale_B, theta_layer.scale_A) + self.init_log_sigma
        return (
            mean.square().sum() / (2 * prior.std**2)
            + 2 * (prior.gamma_shape - 1) * log_sigma.sum()
            + prior.gamma_rate * torch.exp(-2 * log_sigma).sum()
            + mean.numel() * (gaussian_constant(prior) + gamma_constant(prior))
        )

    def kl(self, phi: Factors, theta: Factors) -> Tensor:
        raise NotImplementedError("output space has no KL without inputs: call activation_kl()")

    def negative_log_prior(self, theta: Factors, prior: Prior) -> Tensor:
        raise NotImplementedError("output space has no prior without inputs: call activation_negative_log_prior()")

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """Every token and channel has noise of its own here: sum_ti g_ti g'_ti sigma_ti^2."""
        x, gradients = x.to(layer.mean_A.dtype), gradients.to(layer.mean_A.dtype)
        log_std = 0.5 * self._low_rank(x, layer.scale_B, layer.scale_A) + self.init_log_sigma
        scaled = (gradients * torch.exp(log_std)[:, None]).flatten(2)
        return scaled @ scaled.mT

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        return factors.mean_A.new_tensor(self.init_log_sigma)


@dataclass(frozen=True)
class _Sample:
    """Update of one layer with noise; log variance = ``log_variance`` (x) + 2 ``init_log_sigma``."""

    mean: LowRank
    log_variance: LowRank
    init_log_sigma: float
    noise: Noise

    def __call__(self, x: Tensor) -> Tensor:
        mean, noise = self.mean(x), self.noise
        std = torch.exp(0.5 * self.log_variance(x) + self.init_log_sigma)
        if noise.kind == "local" and noise.rank:
            normal = draw((std.shape[-1], noise.rank), std, noise.generator)
            return torch.addcmul(mean, std, F.linear(random_units(std, noise), normal))
        num_rows, num_tokens, d_out = std.shape
        drawn_tokens = 1 if noise.kind == "shared" else num_tokens  # shared: one number per row and channel
        return torch.addcmul(mean, std, draw((num_rows, drawn_tokens, d_out), std, noise.generator))
