"""Gaussian over the adapter's output (the authors' code): mu(x) = s B A x, log sigma^2(x) = s B' A' x + log c^2."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.draws import Draws
from abmll.posterior.noise import draw, random_units
from abmll.posterior.prior import Prior
from abmll.posterior.space import LayerUpdate, Noise, Space, kaiming_uniform
from abmll.posterior.stacks import Factors
from abmll.posterior.tokenwise import Perturbed, gaussian_kl


@dataclass(frozen=True)
class OutputSpace(Space):
    """Output-space Gaussian LoRA, whose KL and prior need the layers' inputs.

    scale_A and scale_B are A' and B' above, of the means' rank; log c^2 is twice ``init_log_sigma``.

    Below, ``coefficients`` (L, n, 4 r) are those of a stack's L layers for n tokens, as its recorders gave them, and
    ``counts`` (n,) says how many tokens each of the n stands for (None: one).
    """

    init_log_sigma: float = -5.0

    per_activation: ClassVar[bool] = True

    def init_scales(self, mean_A: Tensor, mean_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A' as LoRA's A, B' zero: log variance 2 init_log_sigma whatever the input."""
        return kaiming_uniform(mean_A.shape, generator), torch.zeros_like(mean_B)

    def noisy_layers(self, factors: Factors, noise: Noise) -> list[LayerUpdate]:
        return [*self._recorders(factors, (), noise)]

    def recorders(self, phi: Factors, theta: Factors, noise: Noise | None) -> list["Recorder"]:
        """``layers(phi, noise)``, each in two steps.

        Coefficients (R, L, 4 r): A x and A' x of phi, then phi's less theta's, from the factors' own differences.
        """
        return self._recorders(phi, (phi.mean_A - theta.mean_A, phi.scale_A - theta.scale_A), noise)

    def _recorders(self, phi: Factors, more: tuple[Tensor, ...], noise: Noise | None) -> list["Recorder"]:
        log_sigma = phi.mean_A.new_full((), self.init_log_sigma)
        rights = torch.cat([phi.mean_A, phi.scale_A, *more], dim=1).unbind()
        lefts = (self.scaling * phi.mean_B).unbind(), (0.5 * self.scaling * phi.scale_B).unbind()
        return [Recorder(*layer, log_sigma, noise) for layer in zip(*lefts, rights, strict=True)]

    def activation_kl(self, phi: Factors, theta: Factors, coefficients: Tensor, counts: Tensor | None) -> Tensor:
        """KL of the layers' outputs in nats, summed over layers, tokens and channels.

        Each is 1/2 [exp(d) - 1 - d + (mu - mu')^2 exp(-v')]: v' is theta's log variance, d is phi's less theta's.
        """
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
        """-log p(theta) of the layers' outputs in nats with its normalisers, summed likewise."""
        mean, scale, d_mean, d_scale = coefficients.chunk(4, dim=-1)
        mu = self.scaling * (mean - d_mean) @ theta.mean_B.mT
        log_sigma = 0.5 * self.scaling * (scale - d_scale) @ theta.scale_B.mT + self.init_log_sigma
        by_token = (
            mu.square().sum((0, 2)) / (2 * prior.std**2)
            + 2 * (prior.gamma_shape - 1) * log_sigma.sum((0, 2))
            + prior.gamma_rate * torch.exp(-2 * log_sigma).sum((0, 2))
            + len(mu) * mu.shape[-1] * (prior.gaussian_constant + prior.gamma_constant)
        )
        return by_token.sum() if counts is None else by_token @ counts

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """Every token and channel has noise of its own here: sum_ti g_ti g'_ti sigma_ti^2."""
        x, gradients = x.to(layer.mean_A.dtype), gradients.to(layer.mean_A.dtype)
        half_log_variance = 0.5 * self.scaling * F.linear(F.linear(x, layer.scale_A), layer.scale_B)
        sigma = torch.exp(half_log_variance + self.init_log_sigma)
        scaled = (gradients * sigma[:, None]).flatten(2)
        return scaled @ scaled.mT

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        """Half the log variance at input zero."""
        return factors.mean_A.new_tensor(self.init_log_sigma)


@dataclass(frozen=True)
class Recorder:
    """Update of one layer in two steps, so that the divergence can start from the first one's coefficients.

    The update itself uses the first 2 r of them.
    """

    mean_B: Tensor  # (d_out, r), times s
    half_B: Tensor  # (d_out, r), scale_B times s / 2
    right: Tensor  # (c, d_in): mean_A, scale_A, and whatever else is to be multiplied by the input
    log_sigma: Tensor  # the space's ``init_log_sigma``, a scalar
    noise: Noise | None
    draws: tuple[str, Draws] | None = None  # the layer's name, and where its numbers are drawn with those of others

    def __call__(self, x: Tensor) -> Tensor:
        return self.update(self.coefficients(x))

    def coefficients(self, x: Tensor) -> Tensor:
        """(R, L, d_in) -> (R, L, c): all that the layer's Gaussians need of its input."""
        return F.linear(x.to(self.right.dtype), self.right)

    def update(self, coefficients: Tensor) -> Tensor:
        """(R, L, c) -> (R, L, d_out)."""
        rank = self.mean_B.shape[1]
        if self.noise is None:
            return F.linear(coefficients[..., :rank], self.mean_B)
        shape = (*coefficients.shape[:-1], len(self.mean_B))
        normal = self._normal(coefficients, self.noise).expand(shape).flatten(0, -2)
        both = coefficients.flatten(0, -2)[:, : 2 * rank]
        return cast(Tensor, Perturbed.apply(both, self.mean_B, self.half_B, normal, self.log_sigma)).view(shape)

    def _normal(self, coefficients: Tensor, noise: Noise) -> Tensor:
        """Standard normal numbers (R, L, d_out), or (R, 1, d_out) where all tokens of a row share them."""
        (num_rows, num_tokens, _), d_out = coefficients.shape, len(self.mean_B)
        if noise.kind == "shared" or not noise.rank:
            return draw((num_rows, 1 if noise.kind == "shared" else num_tokens, d_out), coefficients, noise.generator)
        if self.draws is None:
            normal = draw((d_out, noise.rank), coefficients, noise.generator)
            return F.linear(random_units(coefficients, noise), normal)
        name, draws = self.draws
        drawn, units = draws.take((name,), num_rows * num_tokens, coefficients)
        return F.linear(units[d_out:], drawn[:d_out]).view(num_rows, num_tokens, d_out)
