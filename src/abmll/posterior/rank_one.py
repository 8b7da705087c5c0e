"""KL and prior where sigma is a rank-1 product, sigma_ij = exp(b_i + a_j): closed forms, scalars in nats.

Factors are mean_A (L, r, d_in), mean_B (L, d_out, r), scale_A = a (L, 1, d_in) and scale_B = b (L, d_out, 1). No
d_out x d_in matrix is formed.
"""

import torch
from torch import Tensor

from abmll.posterior.numerics import differentiable_exp_excess
from abmll.posterior.prior import Prior
from abmll.posterior.stacks import Factors


def rank_one_kl(phi: Factors, theta: Factors, scaling: float) -> Tensor:
    """Sum over L layers and all weights of KL(N(mu, sigma^2) || N(mu', sigma'^2)), mu = scaling B A; primes: theta.

    Costs O(L (d_out + d_in) r^2). Every addend is a sum of non-negative terms or of products of differences, so that
    nothing cancels when phi is near theta.
    """
    return 0.5 * (_scale_part(phi, theta) + scaling**2 * _mean_part(phi, theta))


def _scale_part(phi: Factors, theta: Factors) -> Tensor:
    """sum_ij exp(2 (db_i + da_j)) - 1 - 2 (db_i + da_j), for db = b - b' and da = a - a'.

    Moving a constant from da to db leaves sigma as it is. With sum_j da_j = 0 and f(x) = exp(2x) - 1 - 2x it equals
    (sum_i exp(2 db_i)) (sum_j f(da_j)) + d_in sum_i f(db_i): two positive terms, of second order each.
    """
    da = phi.scale_A - theta.scale_A
    db = phi.scale_B - theta.scale_B
    gauge = da.mean(dim=-1, keepdim=True)
    both = 2.0 * torch.cat([da - gauge, (db + gauge).mT], dim=-1)
    sizes = [da.shape[-1], db.shape[-2]]
    columns, rows = (part.sum(dim=(1, 2)) for part in differentiable_exp_excess(both).split(sizes, dim=-1))
    exponentials = both[..., sizes[0] :].exp().sum(dim=(1, 2))
    return (exponentials * columns + sizes[0] * rows).sum()


def _mean_part(phi: Factors, theta: Factors) -> Tensor:
    """|| diag(exp(-b')) (B A - B' A') diag(exp(-a')) ||_F^2, with B A - B' A' = [B - B', B'] [A; A - A'].

    For U (d_out x 2r) and V (2r x d_in), ||U V||_F^2 = sum((U^T U) * (V V^T)).
    """
    left = torch.cat([phi.mean_B - theta.mean_B, theta.mean_B], dim=-1) * torch.exp(-theta.scale_B)
    right = torch.cat([phi.mean_A, phi.mean_A - theta.mean_A], dim=-2) * torch.exp(-theta.scale_A)
    return ((left.mT @ left) * (right @ right.mT)).sum()


def mean_negative_log_prior(theta: Factors, prior: Prior, scaling: float) -> Tensor:
    """-log N(scaling B A; 0, std^2), summed over L layers and all weights; for a sigma of any rank."""
    squares = scaling**2 * ((theta.mean_B.mT @ theta.mean_B) * (theta.mean_A @ theta.mean_A.mT)).sum()
    return squares / (2 * prior.std**2) + theta.num_weights * prior.gaussian_constant


def rank_one_gamma_negative_log_prior(theta: Factors, prior: Prior) -> Tensor:
    """-log Gamma(1 / sigma^2; a0, b0), summed over L layers and all weights.

    Elementwise it is ``gamma_constant`` + 2 (a0 - 1) log sigma + b0 / sigma^2, and both sums separate over i and j.
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
        + theta.num_weights * prior.gamma_constant
    )
