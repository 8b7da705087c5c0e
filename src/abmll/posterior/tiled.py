"""KL and Gamma prior for standard deviations of any rank, sigma_ij = sum_k exp(b_ik + a_kj) + c, by row tiles.

log sigma does not separate here, so every weight is visited; but only a tile of rows at a time, and the gradients of
the factors are taken in the same pass. Memory stays at a few tiles, whatever d_out is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from abmll.posterior.factors import Factors
from abmll.posterior.numerics import exp_excess
from abmll.posterior.space import Prior

_Evaluate = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


class _ScalarWithGradients(torch.autograd.Function):
    """A scalar function of tensors whose forward pass already yields the gradients."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        evaluate, *tensors = args
        value, gradients = evaluate(*tensors)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable would not notice here: the saved gradients are constants, so a second
        # derivative through this term would silently be zero.
        if torch.is_grad_enabled():
            raise NotImplementedError("a standard deviation of rank > 1 or with a floor is differentiable only once")
        return (None, *(grad_outputs[0] * gradient for gradient in ctx.saved_tensors))


def _apply(evaluate: _Evaluate, tensors: Sequence[Tensor]) -> Tensor:
    value = _ScalarWithGradients.apply(evaluate, *tensors)
    assert isinstance(value, Tensor)
    return value


def row_tiles(num_layers: int, d_out: int, d_in: int, device: torch.device) -> list[slice]:
    """Slices of the d_out rows such that a (num_layers, rows, d_in) tile fits a CPU's cache, or fills a GPU."""
    elements = 2**18 if device.type == "cpu" else 2**23
    rows = max(1, elements // (num_layers * d_in))
    return [slice(start, min(start + rows, d_out)) for start in range(0, d_out, rows)]


def tiled_kl(phi: Factors, theta: Factors, scaling: float, floor: float) -> Tensor:
    """Sum over L layers and all weights of KL(N(mu, sigma^2) || N(mu', sigma'^2)) in nats, a scalar.

    mu = scaling B A and sigma = exp(scale_B) exp(scale_A) + floor for phi, primed for theta: mean_A (L, r, d_in),
    mean_B (L, d_out, r), scale_A (L, k, d_in), scale_B (L, d_out, k). Differentiable once, in all eight factors.
    """

    def evaluate(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _kl_and_gradients(Factors(*tensors[:4]), Factors(*tensors[4:]), scaling, floor)

    return _apply(evaluate, (*phi, *theta))


def _kl_and_gradients(phi: Factors, theta: Factors, scaling: float, floor: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The KL and its gradients with respect to phi's four factors, then theta's.

    With delta = sigma / sigma' - 1, eta = log(1 + delta) and h = (mu - mu') / sigma', an element's KL is
    1/2 [exp(2 eta) - 1 - 2 eta + h^2] and exp(2 eta) - 1 = delta (2 + delta). Both differences are low-rank products
    of the factors' own differences, hence relatively accurate.
    """
    exp_A, exp_B, phi_exp_A, phi_exp_B, sigma_right, sigma_left = _exponentials(phi, theta)
    mean_left = scaling * torch.cat([phi.mean_B - theta.mean_B, theta.mean_B], dim=-1)
    mean_right = torch.cat([phi.mean_A, phi.mean_A - theta.mean_A], dim=-2)
    value = exp_A.new_zeros(())
    by_phi, by_theta = (Factors(*(torch.zeros_like(tensor) for tensor in factors)) for factors in (phi, theta))
    for rows in row_tiles(exp_B.shape[0], exp_B.shape[1], exp_A.shape[2], exp_A.device):
        sigma = phi_exp_B[:, rows] @ phi_exp_A + floor
        theta_sigma = exp_B[:, rows] @ exp_A + floor
        ratio_excess = (sigma_left[:, rows] @ sigma_right).div_(theta_sigma)  # delta
        distance = (mean_left[:, rows] @ mean_right).div_(theta_sigma)  # h
        growth = ratio_excess * (ratio_excess + 2.0)
        log_ratio = _log_ratio(ratio_excess, sigma, theta_sigma)
        value += 0.5 * (exp_excess(2.0 * log_ratio, growth).sum() + distance.square().sum())

        by_theta_sigma = torch.addcmul(growth, distance, distance).div_(theta_sigma).neg_()
        by_sigma = growth.div_(sigma)
        by_mean = distance.div_(theta_sigma).mul_(scaling)
        _add_product_gradient(by_phi.scale_B, by_phi.scale_A, by_sigma, phi_exp_B, phi_exp_A, rows)
        _add_product_gradient(by_theta.scale_B, by_theta.scale_A, by_theta_sigma, exp_B, exp_A, rows)
        _add_product_gradient(by_phi.mean_B, by_phi.mean_A, by_mean, phi.mean_B, phi.mean_A, rows)
        _add_product_gradient(by_theta.mean_B, by_theta.mean_A, by_mean.neg_(), theta.mean_B, theta.mean_A, rows)
    for gradients, a, b in ((by_phi, phi_exp_A, phi_exp_B), (by_theta, exp_A, exp_B)):
        gradients.scale_A.mul_(a)
        gradients.scale_B.mul_(b)
    return value, (*by_phi, *by_theta)


def _exponentials(phi: Factors, theta: Factors) -> tuple[Tensor, ...]:
    """e^a', e^b', e^a, e^b, and the right and left factors of sigma - sigma' = [e^b - e^b', e^b'] [e^a; e^a - e^a']."""
    shift_A, shift_B = phi.scale_A - theta.scale_A, phi.scale_B - theta.scale_B
    exp_A, exp_B = theta.scale_A.exp(), theta.scale_B.exp()
    phi_exp_A, phi_exp_B = phi.scale_A.exp(), phi.scale_B.exp()
    right = torch.cat([phi_exp_A, exp_A * shift_A.expm1()], dim=-2)
    left = torch.cat([exp_B * shift_B.expm1(), exp_B], dim=-1)
    return exp_A, exp_B, phi_exp_A, phi_exp_B, right, left


def _log_ratio(ratio_excess: Tensor, sigma: Tensor, theta_sigma: Tensor) -> Tensor:
    """log(sigma / sigma'): from the excess near 1, from the ratio where the excess nears -1 and has lost its digits."""
    if ratio_excess.amin() > -0.5:  # nearly always, and the selection below costs as much as the rest together
        return ratio_excess.log1p()
    return torch.where(ratio_excess > -0.5, ratio_excess.log1p(), torch.log(sigma / theta_sigma))


def _add_product_gradient(
    left_gradient: Tensor, right_gradient: Tensor, by_product: Tensor, left: Tensor, right: Tensor, rows: slice
) -> None:
    """Add a row tile's share of the gradients of ``left @ right`` in place, given the product's gradient there."""
    left_gradient[:, rows] = by_product @ right.mT
    right_gradient.baddbmm_(left[:, rows].mT, by_product)


def tiled_gamma_negative_log_prior(theta: Factors, prior: Prior, floor: float) -> Tensor:
    """sum of 2 (a0 - 1) log sigma + b0 / sigma^2 over L layers and all weights: -log Gamma(1 / sigma^2; a0, b0) in
    nats less its normaliser, a scalar. Differentiable once, in the scale factors."""

    def evaluate(scale_A: Tensor, scale_B: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _gamma_and_gradients(scale_A, scale_B, prior, floor)

    return _apply(evaluate, (theta.scale_A, theta.scale_B))


def _gamma_and_gradients(
    scale_A: Tensor, scale_B: Tensor, prior: Prior, floor: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    exp_A, exp_B = scale_A.exp(), scale_B.exp()
    value = exp_A.new_zeros(())
    gradient_A, gradient_B = torch.zeros_like(exp_A), torch.zeros_like(exp_B)
    log_weight = 2.0 * (prior.gamma_shape - 1.0)
    for rows in row_tiles(exp_B.shape[0], exp_B.shape[1], exp_A.shape[2], exp_A.device):
        sigma = exp_B[:, rows] @ exp_A + floor
        scaled_precision = prior.gamma_rate / sigma.square()
        value += log_weight * sigma.log().sum() + scaled_precision.sum()
        by_sigma = scaled_precision.mul_(-2.0).add_(log_weight).div_(sigma)
        _add_product_gradient(gradient_B, gradient_A, by_sigma, exp_B, exp_A, rows)
    return value, (gradient_A.mul_(exp_A), gradient_B.mul_(exp_B))


def tiled_log_sigma_mean(theta: Factors, floor: float) -> Tensor:
    """The mean of log sigma over L layers and all weights, outside the gradient graph; a scalar."""
    with torch.no_grad():
        exp_A, exp_B = theta.scale_A.exp(), theta.scale_B.exp()
        num_layers, d_out, d_in = exp_B.shape[0], exp_B.shape[1], exp_A.shape[2]
        total = exp_A.new_zeros(())
        for rows in row_tiles(num_layers, d_out, d_in, exp_A.device):
            total += (exp_B[:, rows] @ exp_A).add_(floor).log_().sum()
        return total / (num_layers * d_out * d_in)
