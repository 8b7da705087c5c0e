"""Sums over every token and channel of a stack of layers, for output space's divergence and prior: by tiles."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.posterior.numerics import exp_excess_and_growth
from abmll.posterior.tiles import Gradients, ProductGradient, Tiles, in_one_pass, wanted


def tokenwise_kl(
    coefficients: Tensor,
    shift: tuple[Tensor, Tensor],
    theta: tuple[Tensor, Tensor],
    scaling: float,
    log_sigma: float,
    counts: Tensor | None,
) -> Tensor:
    """sum of c/2 [exp(d) - 1 - d + m^2 exp(-v)] over L layers, n tokens, d_out channels: a scalar, differentiable once.

    d is phi's log variance less theta's, m the difference of the means and v theta's log variance. ``theta`` are its B
    and B' (L, d_out, r), ``shift`` phi's less those, and ``coefficients`` (L, n, 4 r) are a = A x of phi, da (phi's
    less theta's), a' and da'. With s the ``scaling``, nothing cancels near equality in

        m = s (dB a + B da),   d = s (dB' a' + B' da'),   v = s B' (a' - da') + 2 ``log_sigma``.

    ``counts`` c (n,) is how many tokens each stands for; None: one.
    """
    learned = [wanted(coefficients), wanted(*shift), wanted(*theta)]

    def evaluate(*tensors: Tensor) -> tuple[Tensor, Gradients]:
        return _kl_and_gradients(tensors, scaling, log_sigma, counts, learned)

    return in_one_pass(evaluate, (coefficients, *shift, *theta))


def _kl_and_gradients(
    tensors: Sequence[Tensor], scaling: float, log_sigma: float, counts: Tensor | None, learned: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """The KL and its gradients, those of ``coefficients``, ``shift`` and ``theta`` where they are ``learned``.

    The constant of v is a factor of m here.
    """
    coefficients, shift_B, shift_scale, theta_B, theta_scale = tensors
    rank, (mean, scale) = theta_B.shape[2], coefficients.chunk(2, -1)
    variance = scale[..., :rank] - scale[..., rank:]
    factors = scaling * math.exp(-log_sigma), scaling, -scaling
    pairs = [
        (mean, factors[0] * torch.cat([shift_B, theta_B], -1).mT),
        (scale, factors[1] * torch.cat([shift_scale, theta_scale], -1).mT),
        (variance, factors[2] * theta_scale.mT),
    ]
    rows_learned = (2 * rank, 2 * rank, rank) if learned[2] else (rank, rank, 0)
    by_products = [
        ProductGradient(left if counts is None else left * counts[:, None], right, any(learned), count)
        for (left, right), count in zip(pairs, rows_learned, strict=True)
    ]
    by_token = coefficients.new_empty(coefficients.shape[:2])
    for layers, rows, buffers in Tiles(*pairs[0], 3):
        for (left, right), product in zip(pairs, buffers, strict=True):
            torch.bmm(left[layers, rows], right[layers], out=product)
        distance, difference, precision = buffers
        excess, growth = exp_excess_and_growth(difference)
        pull = precision.exp_().mul_(distance)
        square = distance.mul_(pull)
        torch.sum(excess.add_(square), -1, out=by_token[layers, rows])
        for by_product, gradient in zip(by_products, (pull, growth, square), strict=True):
            by_product.add(layers, rows, gradient)
    return 0.5 * _total(by_token, counts), _gradients(by_products, factors, counts, learned)


def _total(by_token: Tensor, counts: Tensor | None) -> Tensor:
    """The scalar sum over layers and tokens of what is (L, n)."""
    sums = by_token.sum(0, dtype=torch.float64)
    return (sums.sum() if counts is None else sums @ counts.double()).to(by_token.dtype)


def _gradients(
    by_products: Sequence[ProductGradient], factors: Sequence[float], counts: Tensor | None, learned: Sequence[bool]
) -> Gradients:
    """Of coefficients, shift and theta, from those of the products that have these ``factors``."""
    if not any(learned):
        return (None,) * 5
    shares = zip(by_products, (1.0, 0.5, 0.5), strict=True)
    (mean, by_mean), (scale, by_scale), (variance, by_variance) = (one.gradients(share) for one, share in shares)
    rank = by_variance.shape[2]
    by_scale[..., :rank].add_(by_variance)
    by_scale[..., rank:].sub_(by_variance)
    by_coefficients = torch.cat([by_mean.mT, by_scale.mT], 1).mT
    if counts is not None:
        by_coefficients.mul_(counts[:, None])
    by_shift = factors[0] * mean[:, :rank].mT, factors[1] * scale[:, :rank].mT
    if not learned[2]:
        return by_coefficients, *by_shift, None, None
    by_theta_scale = torch.add(factors[1] * scale[:, rank:], variance, alpha=factors[2]).mT
    return by_coefficients, *by_shift, factors[0] * mean[:, rank:].mT, by_theta_scale


def tokenwise_exp(left: Tensor, right: Tensor, counts: Tensor | None) -> Tensor:
    """sum of c exp(left right) over L layers, n tokens, d_out channels: a scalar, differentiable once.

    ``left`` is (L, n, r), ``right`` (L, r, d_out), ``counts`` as above.
    """
    learned = wanted(left, right)

    def evaluate(left: Tensor, right: Tensor) -> tuple[Tensor, Gradients]:
        by_product = ProductGradient(left if counts is None else left * counts[:, None], right, learned)
        by_token = left.new_empty(left.shape[:2])
        for layers, rows, [power] in Tiles(left, right, 1):
            torch.bmm(left[layers, rows], right[layers], out=power).exp_()
            torch.sum(power, -1, out=by_token[layers, rows])
            by_product.add(layers, rows, power)
        by_right, by_left = by_product.result(1.0)
        if by_left is not None and counts is not None:
            by_left.mul_(counts[:, None])
        return _total(by_token, counts), (by_left, by_right)

    return in_one_pass(evaluate, (left, right))
