"""KL and Gamma prior for standard deviations of any rank, sigma_ij = sum_k exp(b_ik + a_kj) + c, by tiles.

log sigma does not separate here, so every weight is computed; but only a tile of them at a time, and the gradients of
the factors are taken in the same pass. Memory stays at a few tiles, whatever the layers' number and size. A tile's
cost is its passes over memory, so each is written to a buffer that all tiles share, and what no gradient needs is not
computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.posterior.numerics import log_ratio_excess_sum, on_host, sinh_excess_series, sinh_excess_sum
from abmll.posterior.prior import Prior
from abmll.posterior.stacks import Factors
from abmll.posterior.tiles import Gradients, ProductGradient, Tiles, in_one_pass, wanted


def tiled_kl(phi: Factors, theta: Factors, scaling: float, floor: float) -> Tensor:
    """Sum over L layers and all weights of KL(N(mu, sigma^2) || N(mu', sigma'^2)) in nats, a scalar.

    mu = scaling B A and sigma = exp(scale_B) exp(scale_A) + floor for phi, primed for theta: mean_A (L, r, d_in),
    mean_B (L, d_out, r), scale_A (L, k, d_in), scale_B (L, d_out, k). Differentiable once, in all eight factors.
    """
    learned = [wanted(*pair) for pair in (phi[:2], phi[2:], theta[:2], theta[2:])]

    def evaluate(*tensors: Tensor) -> tuple[Tensor, Gradients]:
        return _kl_and_gradients(Factors(*tensors[:4]), Factors(*tensors[4:]), scaling, floor, learned)

    return in_one_pass(evaluate, (*phi, *theta))


def _kl_and_gradients(
    phi: Factors, theta: Factors, scaling: float, floor: float, learned: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """The KL and its gradients with respect to phi's four factors, then theta's, those that are ``learned``.

    With delta = sigma / sigma' - 1, eta = log(1 + delta), z = 2 sinh(eta) and h = (mu - mu') / sigma', an element's KL
    is 1/2 [exp(2 eta) - 1 - 2 eta + h^2]. Its derivatives are z / sigma' by sigma, h / sigma' by mu and
    -(delta (2 + delta) + h^2) / sigma' by sigma'. delta, h and z = delta + (sigma - sigma') / sigma are taken from
    low-rank products of the factors' own differences, hence relatively accurate.
    """
    theta_A, theta_B, phi_A, phi_B, sigma_right, sigma_left = _exponentials(phi, theta)
    mean_left = scaling * torch.cat([phi.mean_B - theta.mean_B, theta.mean_B], dim=-1)
    mean_right = torch.cat([phi.mean_A, phi.mean_A - theta.mean_A], dim=-2)
    by_phi_mean = ProductGradient(phi.mean_B, phi.mean_A, learned[0])
    by_phi_scale = ProductGradient(phi_B, phi_A, learned[1])
    by_theta_mean = ProductGradient(theta.mean_B, theta.mean_A, learned[2])
    by_theta_scale = ProductGradient(theta_B, theta_A, learned[3])
    series = _series(phi, theta)
    twice_kl = theta_A.new_zeros((), dtype=torch.float64)
    for layers, rows, buffers in Tiles(theta_B, theta_A, 6):
        sigma, theta_sigma, difference, delta, z, h = buffers
        torch.bmm(phi_B[layers, rows], phi_A[layers], out=sigma)
        torch.bmm(theta_B[layers, rows], theta_A[layers], out=theta_sigma)
        if floor:
            sigma.add_(floor)
            theta_sigma.add_(floor)
        torch.bmm(sigma_left[layers, rows], sigma_right[layers], out=difference)
        torch.bmm(mean_left[layers, rows], mean_right[layers], out=h).div_(theta_sigma)
        torch.div(difference, theta_sigma, out=delta)
        torch.addcdiv(delta, difference, sigma, out=z)
        if series is None:
            twice_kl += log_ratio_excess_sum(delta, sigma, theta_sigma)
        else:
            twice_kl += sinh_excess_sum(delta, z, series, difference, sigma)
        twice_kl += torch.mul(h, h, out=difference).sum()
        if by_phi_scale.wanted:
            by_phi_scale.add(layers, rows, z.div_(theta_sigma))
        if by_theta_scale.wanted:
            torch.addcmul(delta, delta, delta, value=0.5, out=delta).addcmul_(h, h, value=0.5)
            by_theta_scale.add(layers, rows, delta.div_(theta_sigma))
        h.div_(theta_sigma)
        by_phi_mean.add(layers, rows, h)
        by_theta_mean.add(layers, rows, h)
    by_phi = (*by_phi_mean.result(scaling), *by_phi_scale.result_of_logarithms(1.0))
    by_theta = (*by_theta_mean.result(-scaling), *by_theta_scale.result_of_logarithms(-2.0))
    return (0.5 * twice_kl).to(theta_A.dtype), (*by_phi, *by_theta)


def _exponentials(phi: Factors, theta: Factors) -> tuple[Tensor, ...]:
    """e^a', e^b', e^a, e^b, and the right and left factors of sigma - sigma' = [e^b - e^b', e^b'] [e^a; e^a - e^a']."""
    shift_A, shift_B = phi.scale_A - theta.scale_A, phi.scale_B - theta.scale_B
    exp_A, exp_B = theta.scale_A.exp(), theta.scale_B.exp()
    phi_exp_A, phi_exp_B = phi.scale_A.exp(), phi.scale_B.exp()
    right = torch.cat([phi_exp_A, exp_A * shift_A.expm1()], dim=-2)
    left = torch.cat([exp_B * shift_B.expm1(), exp_B], dim=-1)
    return exp_A, exp_B, phi_exp_A, phi_exp_B, right, left


def _series(phi: Factors, theta: Factors) -> list[float] | None:
    """The power series of the scale part that holds for every weight, or None where none is short enough.

    sigma / sigma' is a mean of exp(db_ik + da_kj) over k (and of 1, for a floor): the factors bound it for all i and j.
    On an accelerator, which would have to wait, the series would save nothing.
    """
    shift_A, shift_B = phi.scale_A - theta.scale_A, phi.scale_B - theta.scale_B
    if not on_host(shift_A):
        return None
    low = shift_A.amin(dim=-1) + shift_B.amin(dim=-2)
    high = shift_A.amax(dim=-1) + shift_B.amax(dim=-2)
    return sinh_excess_series(float(torch.maximum(-low, high).max()), shift_A.dtype)


def tiled_gamma_negative_log_prior(theta: Factors, prior: Prior, floor: float) -> Tensor:
    """sum of 2 (a0 - 1) log sigma + b0 / sigma^2 over L layers and all weights: -log Gamma(1 / sigma^2; a0, b0) in
    nats less its normaliser, a scalar. Differentiable once, in the scale factors."""
    learned = wanted(*theta[2:])

    def evaluate(scale_A: Tensor, scale_B: Tensor) -> tuple[Tensor, Gradients]:
        return _gamma_and_gradients(scale_A, scale_B, prior, floor, learned)

    return in_one_pass(evaluate, (theta.scale_A, theta.scale_B))


def _gamma_and_gradients(
    scale_A: Tensor, scale_B: Tensor, prior: Prior, floor: float, learned: bool
) -> tuple[Tensor, Gradients]:
    exp_A, exp_B = scale_A.exp(), scale_B.exp()
    value = exp_A.new_zeros((), dtype=torch.float64)
    by_scale = ProductGradient(exp_B, exp_A, learned)
    log_weight = 2.0 * (prior.gamma_shape - 1.0)
    for layers, rows, (sigma, inverse) in Tiles(exp_B, exp_A, 2):
        torch.bmm(exp_B[layers, rows], exp_A[layers], out=sigma).add_(floor)
        torch.reciprocal(sigma, out=inverse)
        if log_weight:
            value += log_weight * sigma.log_().sum()
        precision = torch.mul(inverse, inverse, out=sigma)
        value += prior.gamma_rate * precision.sum()
        if learned:
            by_scale.add(layers, rows, precision.mul_(-2.0 * prior.gamma_rate).add_(log_weight).mul_(inverse))
    return value.to(exp_A.dtype), by_scale.result_of_logarithms(1.0)


def tiled_log_sigma_mean(theta: Factors, floor: float) -> Tensor:
    """The mean of log sigma over L layers and all weights, outside the gradient graph; a scalar."""
    with torch.no_grad():
        exp_A, exp_B = theta.scale_A.exp(), theta.scale_B.exp()
        total = exp_A.new_zeros((), dtype=torch.float64)
        for layers, rows, [sigma] in Tiles(exp_B, exp_A, 1):
            total += torch.bmm(exp_B[layers, rows], exp_A[layers], out=sigma).add_(floor).log_().sum()
        return (total / (exp_B.shape[0] * exp_B.shape[1] * exp_A.shape[2])).to(exp_A.dtype)
