"""Gaussian over the adapter's weights (the paper's equations): mu = s B A, sigma_ij = sum_k exp(b_ik + a_kj) + c."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.common.errors import ConfigError
from abmll.posterior.any_rank import tiled_gamma_negative_log_prior, tiled_kl, tiled_log_sigma_mean
from abmll.posterior.covariance import dense_covariance, rank_one_covariance
from abmll.posterior.draws import Draws
from abmll.posterior.noise import LowRankUpdate, NoisyUpdate, draw, shared_directions, smallest
from abmll.posterior.prior import Prior
from abmll.posterior.rank_one import mean_negative_log_prior, rank_one_gamma_negative_log_prior, rank_one_kl
from abmll.posterior.shared_input import Sampled, shared_inputs
from abmll.posterior.space import LayerUpdate, Noise, Place, Space
from abmll.posterior.stacks import Factors


@dataclass(frozen=True)
class WeightSpace(Space):
    """Weight-space Gaussian LoRA. Rank 1 without a floor c is evaluated in closed form, anything else by tiles.

    Raises ConfigError on a rank below 1, a negative floor or a number that is not finite.
    """

    sigma_rank: int = 1
    sigma_floor: float = 0.0
    init_log_sigma: float = -5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_rank < 1 or self.sigma_floor < 0:
            raise ConfigError(f"{self}: give a sigma_rank of 1 or more and a sigma_floor of 0 or more")

    @property
    def _closed_form(self) -> bool:
        return self.sigma_rank == 1 and self.sigma_floor == 0.0

    def init_scales(self, mean_A: Tensor, mean_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """sigma - c = exp(init_log_sigma) everywhere, to rounding.

        At sigma_rank > 1 every column splits that sum at random among the components: equal components would have
        equal gradients and stay equal for ever.
        """
        (num_layers, _, d_in), device = mean_A.shape, generator.device
        split = torch.randn((num_layers, self.sigma_rank, d_in), generator=generator, device=device).log_softmax(dim=1)
        half = 0.5 * self.init_log_sigma
        return split + half, mean_B.new_full((num_layers, mean_B.shape[1], self.sigma_rank), half)

    def noisy_layers(self, factors: Factors, noise: Noise) -> list[LayerUpdate]:
        if noise.rank and self._closed_form:
            positive_A = factors.scale_A.exp()
            left, right, square_A = self._sampled(factors, positive_A, noise)
            directions, least = shared_directions(positive_A[:, 0], noise), smallest(left)
            stack = zip(
                left.unbind(), right.unbind(), positive_A[:, 0].unbind(), square_A.unbind(), directions, strict=True
            )
            return [LowRankUpdate(*layer, least, noise) for layer in stack]
        left, right = self.scaling * factors.mean_B, factors.mean_A
        positive_B, positive_A = self._positive_factors(factors)
        stack = zip(left.unbind(), right.unbind(), positive_B.unbind(), positive_A.unbind(), strict=True)
        return [NoisyUpdate(*layer, noise) for layer in stack]

    def grouped_layers(
        self, stacks: Sequence[Factors], groups: Mapping[tuple[str, ...], Sequence[Place]], noise: Noise, draws: Draws
    ) -> dict[str, LayerUpdate] | None:
        if not (self._closed_form and noise.rank and noise.kind == "local"):
            return None
        return shared_inputs([self._sampled(one, one.scale_A.exp(), noise) for one in stacks], groups, draws)

    def _sampled(self, factors: Factors, positive_A: Tensor, noise: Noise) -> Sampled:
        """Mean and noise in one product of rank r + m, which costs hardly more than the mean alone."""
        left = self.scaling * factors.mean_B
        normal = draw((*left.shape[:2], noise.rank), left, noise.generator)
        joint = torch.cat([left, factors.scale_B.exp() * normal], dim=-1)
        return Sampled(joint, factors.mean_A, positive_A.square().expand(-1, noise.rank, -1))

    def has_low_rank_samples(self, noise: Noise) -> bool:
        """Whether ``low_rank_samples`` can be drawn with such noise."""
        return bool(noise.rank) and self._closed_form

    def low_rank_samples(
        self, factors: Factors, noises: Sequence[Noise]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What ``noisy_layers`` gives each of C adapters (C, L, ...) under its own noise: the fields of its updates.

        left (C, L, d_out, r + m), right (C, L, r, d_in), a (C, L, d_in), directions (C, L, d_in, m) or None.
        """
        left, right = self.scaling * factors.mean_B, factors.mean_A
        positive_B, positive_A = self._positive_factors(factors)
        shape, directions = (*positive_B.shape[1:3], noises[0].rank), None
        normal = torch.stack([draw(shape, left, noise.generator) for noise in noises])
        if noises[0].kind == "shared":
            shape = right.shape[1], right.shape[3], noises[0].rank
            drawn = torch.stack([draw(shape, left, noise.generator) for noise in noises])
            directions = positive_A[:, :, 0, :, None] * drawn
        return torch.cat([left, positive_B * normal], dim=-1), right, positive_A[:, :, 0], directions

    @property
    def sample_components(self) -> int:
        return self.sigma_rank + (self.sigma_floor > 0)

    def plain_sample(self, factors: Factors, directions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """s B A + sum_k diag(b_k) U V^T diag(a_k) / sqrt(m), U (d_out, m) and V (d_in, m) standard normal.

        The noise's entries are sigma_ij (U V^T)_ij / sqrt(m): their mean is zero, their standard deviation sigma_ij,
        and they are uncorrelated. They are not Gaussian, with an excess kurtosis of 6 / m, nor independent.
        """
        positive_B, positive_A = self._positive_factors(factors)
        u = draw((*factors.mean_B.shape[:2], 1, directions), positive_B, generator)
        v = draw((len(positive_A), 1, directions, positive_A.shape[-1]), positive_A, generator)
        noise_B = (positive_B[..., None] * u).flatten(2) / directions**0.5
        noise_A = (positive_A[:, :, None] * v).flatten(1, 2)
        mean_B = self.scaling * factors.mean_B
        return torch.cat([mean_B, noise_B], dim=-1), torch.cat([factors.mean_A, noise_A], dim=-2)

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
        normaliser = theta.num_weights * prior.gamma_constant
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
