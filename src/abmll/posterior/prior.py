"""-log p(theta): a Gaussian on the means and a Gamma on the precisions, normalisers included (paper, section 3)."""

import math

import torch
from torch import Tensor

from abmll.posterior.space import Prior
from abmll.posterior.stacks import Factors


def mean_negative_log_prior(theta: Factors, prior: Prior, scaling: float) -> Tensor:
    """-log N(scaling B A; 0, std^2), summed over L layers and all weights: closed form, a scalar in nats."""
    squares = scaling**2 * ((theta.mean_B.mT @ theta.mean_B) * (theta.mean_A @ theta.mean_A.mT)).sum()
    return squares / (2 * prior.std**2) + num_weights(theta) * gaussian_constant(prior)


def rank_one_gamma_negative_log_prior(theta: Factors, prior: Prior) -> Tensor:
    """-log Gamma(1 / sigma^2; a0, b0) for sigma_ij = exp(b_i + a_j), summed over L layers: closed form, in nats.

    Elementwise it is gamma_constant + 2 (a0 - 1) log sigma + b0 / sigma^2, and both sums separate over i and j.
    """
    b, a = theta.scale_B, theta.scale_A
    log_sigma_sum = a.shape[-1] * b.sum() + b.shape[-2] * a.sum()
    # Moving the columns' mean to the rows keeps both exponentials in range whatever the gauge of (b, a).
    gauge = a.mean(dim=-1, keepdim=True)
    row_precision = torch.exp(-2 * (b + gauge)).sum(dim=(1, 2))
    column_precision = torch.exp(-2 * (a - gauge)).sum(dim=(1, 2))
    return (
        2 * (prior.gamma_shape - 1) * log_sigma_sum
        + prior.gamma_rate * (row_precision * column_precision).sum()
        + num_weights(theta) * gamma_constant(prior)
    )


def num_weights(factors: Factors) -> int:
    """L * d_out * d_in: how many weights the factors describe."""
    return factors.mean_A.shape[0] * factors.mean_B.shape[-2] * factors.mean_A.shape[-1]


def gaussian_constant(prior: Prior) -> float:
    """log(std sqrt(2 pi)): the normaliser of one weight's -log N(mu; 0, std^2)."""
    return math.log(prior.std) + 0.5 * math.log(2 * math.pi)


def gamma_constant(prior: Prior) -> float:
    """lgamma(a0) - a0 log b0: the normaliser of one weight's -log Gamma(1 / sigma^2; a0, b0)."""
    return math.lgamma(prior.gamma_shape) - prior.gamma_shape * math.log(prior.gamma_rate)
