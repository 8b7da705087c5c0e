"""Gaussian over the factors themselves: y = s (B + S_B * E_B) (A + S_A * E_A) x with standard normal E.

The entries of A, and of B where ``random_B``, are independent; scale_A (L, r, d_in) and scale_B (L, d_out, r) are the
logarithms of their standard deviations. Without ``random_B``, as in BLoB (Wang et al., arXiv 2406.11675, section 3), B
is a parameter without a distribution: scale_B is empty, (L, d_out, 0), and B takes no part in the divergence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.noise import draw
from abmll.posterior.numerics import differentiable_exp_excess
from abmll.posterior.prior import Prior
from abmll.posterior.space import LayerUpdate, Noise, Space, low_rank_updates
from abmll.posterior.stacks import Factors


@dataclass(frozen=True)
class FactorSpace(Space):
    """Factor-space Gaussian LoRA.

    ``shared`` noise is one draw of A and B a pass: a plain LoRA update, the same for every token and example.
    ``local`` noise is flipout: one draw E a pass and layer, which every token sees under random signs of its own,
    E_ij t_i s_j. That is standard normal for each token and uncorrelated between tokens. Signs belong to tokens (as
    in BLoB's published code), not to examples: examples lie packed in one row, and share tokens at its beginning.
    The noise's rank is of no meaning here, both are exact.
    """

    init_log_sigma: float = -5.0
    random_B: bool = True

    def init_scales(self, mean_A: Tensor, mean_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every standard deviation is exp(init_log_sigma)."""
        random = mean_B if self.random_B else mean_B[..., :0]
        return torch.full_like(mean_A, self.init_log_sigma), torch.full_like(random, self.init_log_sigma)

    @property
    def sample_components(self) -> int:
        return 0

    def plain_sample(self, factors: Factors, directions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Exact, at the mean's rank; ``directions`` are of no meaning here."""
        noise_A, noise_B = self._draw(factors, generator)
        left, right = self.scaling * factors.mean_B, factors.mean_A
        return left if noise_B is None else left + noise_B, right + noise_A

    def _draw(self, factors: Factors, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """What a sample adds to A, and to s B where B is random."""
        noise_A = factors.scale_A.exp() * draw(tuple(factors.mean_A.shape), factors.mean_A, generator)
        if not self.random_B:
            return noise_A, None
        normal = draw(tuple(factors.mean_B.shape), factors.mean_B, generator)
        return noise_A, self.scaling * factors.scale_B.exp() * normal

    def noisy_layers(self, factors: Factors, noise: Noise) -> list[LayerUpdate]:
        if noise.kind == "shared":
            return low_rank_updates(*self.plain_sample(factors, 0, noise.generator))
        left, right = self.scaling * factors.mean_B, factors.mean_A
        noise_A, noise_B = self._draw(factors, noise.generator)
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
        means, scales = theta[:2], theta[2:]
        constants = sum(mean.numel() for mean in means) * prior.gaussian_constant
        constants += sum(scale.numel() for scale in scales) * prior.gamma_constant
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
