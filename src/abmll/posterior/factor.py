"""Gaussian over the factors themselves: y = s (B + S_B * E_B) (A + S_A * E_A) x with standard normal E.

The entries of A, and of B where ``random_B``, are independent; scale_A (L, r, d_in) and scale_B (L, d_out, r) are the
logarithms of their standard deviations. Without ``random_B``, as in BLoB (Wang et al., arXiv 2406.11675, section 3), B
is a parameter without a distribution: scale_B is empty, (L, d_out, 0), and B takes no part in the divergence.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.noise import draw
from abmll.posterior.numerics import differentiable_exp_excess
from abmll.posterior.prior import gamma_constant, gaussian_constant
from abmll.posterior.space import LayerUpdate, LowRank, Noise, Prior
from abmll.posterior.stacks import Factors
from abmll.posterior.weight import kaiming_uniform


@dataclass(frozen=True)
class FactorSpace:
    """Factor-space Gaussian LoRA; see ``Space`` for what its functions take and return.

    ``shared`` noise is one draw of A and B a pass: a plain LoRA update, the same for every token and example.
    ``local`` noise is flipout: one draw E a pass and layer, which every token sees under random signs of its own,
    E_ij t_i s_j. That is standard normal for each token and uncorrelated between tokens. Signs belong to tokens (as
    in BLoB's published code), not to examples: examples lie packed in one row, and share tokens at its beginning.
    The noise's rank is of no meaning here, both are exact. Raises ConfigError on a start that is not finite.
    """

    scaling: float
    init_log_sigma: float = -5.0
    random_B: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.init_log_sigma):
            raise ConfigError(f"init_log_sigma is {self.init_log_sigma}: give a finite number")

    @property
    def per_activation(self) -> bool:
        return False

    def scale_rank(self, r: int) -> int:
        return r

    def init(self, num_layers: int, d_out: int, d_in: int, r: int, generator: torch.Generator) -> Factors:
        """mean_A as LoRA's A, mean_B zero, and every standard deviation exp(init_log_sigma)."""
        device = generator.device
        return Factors(
            mean_A=kaiming_uniform((num_layers, r, d_in), generator),
            mean_B=torch.zeros(num_layers, d_out, r, device=device),
            scale_A=torch.full((num_layers, r, d_in), self.init_log_sigma, device=device),
            scale_B=torch.full((num_layers, d_out, r if self.random_B else 0), self.init_log_sigma, device=device),
        )

    def layers(self, factors: Factors, noise: Noise | None) -> list[LayerUpdate]:
        left, right = self.scaling * factors.mean_B, factors.mean_A
        if noise is None:
            return [LowRank(*layer) for layer in zip(left.unbind(), right.unbind(), strict=True)]
        noise_A = factors.scale_A.exp() * draw(tuple(right.shape), right, noise.generator)
        noise_B = None
        if self.random_B:
            noise_B = self.scaling * factors.scale_B.exp() * draw(tuple(left.shape), left, noise.generator)
        if noise.kind == "shared":
            left = left if noise_B is None else left + noise_B
            return [LowRank(*layer) for layer in zip(left.unbind(), (right + noise_A).unbind(), strict=True)]
        each_B = [None] * len(left) if noise_B is None else noise_B.unbind()
        stack = zip(left.unbind(), right.unbind(), noise_A.unbind(), each_B, strict=True)
        return [_Flipout(*layer, noise.generator) for layer in stack]

    def kl(self, phi: Factors, theta: Factors) -> Tensor:
        divergence = _gaussian_kl(phi.mean_A, phi.scale_A, theta.mean_A, theta.scale_A)
        if self.random_B:
            divergence = divergence + _gaussian_kl(phi.mean_B, phi.scale_B, theta.mean_B, theta.scale_B)
        return divergence

    def negative_log_prior(self, theta: Factors, prior: Prior) -> Tensor:
        """Of the entries of A and B: N(mean; 0, std^2), and the Gamma on 1 / sigma^2 of those that are random."""
        means, scales = (theta.mean_A, theta.mean_B), (theta.scale_A, theta.scale_B)
        constants = sum(mean.numel() for mean in means) * gaussian_constant(prior)
        constants += sum(scale.numel() for scale in scales) * gamma_constant(prior)
        gaussian = torch.stack([mean.square().sum() for mean in means]).sum() / (2 * prior.std**2)
        logs = torch.stack([scale.sum() for scale in scales]).sum()
        precisions = torch.stack([torch.exp(-2 * scale).sum() for scale in scales]).sum()
        return gaussian + 2 * (prior.gamma_shape - 1) * logs + prior.gamma_rate * precisions + constants

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """To first order in the entries: those of A have the gradient s (B^T g_t) x_t^T, those of B s g_t (A x_t)^T."""
        x, gradients = x.to(layer.mean_A.dtype), self.scaling * gradients.to(layer.mean_A.dtype)
        by_A = (gradients @ layer.mean_B).mT @ x[:, None]
        scaled = (by_A * layer.scale_A.exp()).flatten(2)
        covariance = scaled @ scaled.mT
        if self.random_B:
            by_B = gradients.mT @ F.linear(x, layer.mean_A)[:, None]
            scaled = (by_B * layer.scale_B.exp()).flatten(2)
            covariance = covariance + scaled @ scaled.mT
        return covariance

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        return torch.cat([factors.scale_A.flatten(), factors.scale_B.flatten()]).mean().detach()


@dataclass(frozen=True)
class _Flipout:
    """Update of one layer under flipout noise; see ``FactorSpace``."""

    left: Tensor  # (d_out, r)
    right: Tensor  # (r, d_in)
    noise_A: Tensor  # (r, d_in)
    noise_B: Tensor | None  # (d_out, r)
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.right.dtype)
        hidden = F.linear(x, self.right) + self._flipped(x, self.noise_A)
        output = F.linear(hidden, self.left)
        return output if self.noise_B is None else output + self._flipped(hidden, self.noise_B)

    def _flipped(self, x: Tensor, noise: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out): the noise (d_out, d_in) times every token, under signs of the token's own."""
        flipped = F.linear(x * self._signs(x.shape), noise)
        return flipped * self._signs(flipped.shape)

    def _signs(self, shape: tuple[int, ...]) -> Tensor:
        """1 or -1, as likely one as the other."""
        bits = torch.randint(2, shape, generator=self.generator, device=self.right.device, dtype=torch.int8)
        return (2 * bits - 1).to(self.right.dtype)


def _gaussian_kl(mean: Tensor, log_std: Tensor, mean0: Tensor, log_std0: Tensor) -> Tensor:
    """Sum of KL(N(mean, std^2) || N(mean0, std0^2)) over all entries, without cancellation where the two are near."""
    distance = (mean - mean0) * torch.exp(-log_std0)
    return 0.5 * (differentiable_exp_excess(2.0 * (log_std - log_std0)).sum() + distance.square().sum())
