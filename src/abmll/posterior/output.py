"""Gaussian over the adapter's output (the authors' code): mu(x) = s B A x, log sigma^2(x) = s B' A' x + log c^2."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.draws import Draws
from abmll.posterior.prior import Prior
from abmll.posterior.recorders import Record, Recorder, Recording, shared_recorders
from abmll.posterior.space import LayerUpdate, Noise, Place, Space, kaiming_uniform
from abmll.posterior.stacks import Factors
from abmll.posterior.tokenwise_terms import tokenwise_exp, tokenwise_kl

LARGEST_LOG_SIGMA = 40  # beyond it, either way, a variance or its inverse is no number of single precision


@dataclass(frozen=True)
class OutputSpace(Space):
    """Output-space Gaussian LoRA, whose KL and prior need the layers' inputs.

    Raises ConfigError for an ``init_log_sigma`` further from zero than 40.

    scale_A and scale_B are A' and B' above, of the means' rank; log c^2 is twice ``init_log_sigma``.

    Below, ``coefficients`` (L, n, 4 r) are those of a stack's L layers for n tokens, as its recorders gave them, and
    ``counts`` (n,) says how many tokens each of the n stands for (None: one).
    """

    init_log_sigma: float = -5.0

    per_activation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.init_log_sigma) > LARGEST_LOG_SIGMA:
            raise ConfigError(f"{self}: give an init_log_sigma between -{LARGEST_LOG_SIGMA} and {LARGEST_LOG_SIGMA}")

    def init_scales(self, mean_A: Tensor, mean_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A' as LoRA's A, B' zero: log variance 2 init_log_sigma whatever the input."""
        return kaiming_uniform(mean_A.shape, generator), torch.zeros_like(mean_B)

    def noisy_layers(self, factors: Factors, noise: Noise) -> list[LayerUpdate]:
        return [*self._recorders(self._recording(factors, factors.mean_A, factors.scale_A), noise)]

    def recorders(self, phi: Factors, theta: Factors, noise: Noise | None) -> list[Recorder]:
        """``layers(phi, noise)``, which leave the coefficients (R, L, 4 r) of their inputs.

        They are A x of phi, then phi's less theta's from the factors' own differences, and likewise A' x.
        """
        return self._recorders(self._beside(phi, theta), noise)

    def shared_recorders(
        self,
        stacks: Sequence[tuple[Factors, Factors]],
        groups: Mapping[tuple[str, ...], Sequence[Place]],
        draws: Draws,
    ) -> dict[str, Record]:
        """The same of all layers by name under local noise, from ``stacks`` of phi's and theta's factors.

        ``groups`` and ``draws`` are as in ``grouped_layers``; a layer's ``channels`` there are its d_out.
        """
        recordings = [self._beside(phi, theta) for phi, theta in stacks]
        return shared_recorders(recordings, groups, math.exp(self.init_log_sigma), draws)

    def _recorders(self, stack: Recording, noise: Noise | None) -> list[Recorder]:
        sigma, layers = math.exp(self.init_log_sigma), zip(*(tensor.unbind() for tensor in stack), strict=True)
        return [Recorder(mean_B, half_B, right, sigma, noise) for mean_B, half_B, right in layers]

    def _beside(self, phi: Factors, theta: Factors) -> Recording:
        shift_A, shift_scale = phi.mean_A - theta.mean_A, phi.scale_A - theta.scale_A
        return self._recording(phi, phi.mean_A, shift_A, phi.scale_A, shift_scale)

    def _recording(self, phi: Factors, *rows: Tensor) -> Recording:
        mean_B, half_B = self.scaling * phi.mean_B, 0.5 * self.scaling * phi.scale_B
        return Recording(mean_B.mT, half_B.mT, torch.cat(rows, dim=1))

    def activation_kl(self, phi: Factors, theta: Factors, coefficients: Tensor, counts: Tensor | None) -> Tensor:
        """KL of the layers' outputs in nats, summed over layers, tokens and channels.

        Each is 1/2 [exp(d) - 1 - d + (mu - mu')^2 exp(-v')]: v' is theta's log variance, d is phi's less theta's.
        """
        shift = phi.mean_B - theta.mean_B, phi.scale_B - theta.scale_B
        own = theta.mean_B, theta.scale_B
        return tokenwise_kl(coefficients, shift, own, self.scaling, self.init_log_sigma, counts)

    def activation_negative_log_prior(
        self, theta: Factors, prior: Prior, coefficients: Tensor, counts: Tensor | None
    ) -> Tensor:
        """-log p(theta) of the layers' outputs in nats with its normalisers, summed likewise.

        Of all its terms the precisions alone need the outputs themselves: squares of means are a quadratic form in the
        coefficients, logarithms of sigma are linear in them.
        """
        mean, d_mean, scale, d_scale = coefficients.chunk(4, dim=-1)
        mean, scale, num_outputs = mean - d_mean, scale - d_scale, theta.mean_B.shape[:2].numel()
        squares = self.scaling**2 * (mean @ (theta.mean_B.mT @ theta.mean_B) * mean).sum((0, 2))
        log_sigmas = 0.5 * self.scaling * (scale * theta.scale_B.sum(1)[:, None]).sum((0, 2))
        by_token = (
            squares / (2 * prior.std**2)
            + 2 * (prior.gamma_shape - 1) * (log_sigmas + num_outputs * self.init_log_sigma)
            + num_outputs * (prior.gaussian_constant + prior.gamma_constant)
        )
        precisions = tokenwise_exp(scale, -self.scaling * theta.scale_B.mT, counts)
        rest = by_token.sum() if counts is None else by_token @ counts
        return rest + prior.gamma_rate * math.exp(-2 * self.init_log_sigma) * precisions

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
