"""exp(y) - 1 - y without cancellation, the shape of every KL between Gaussians of nearly equal variance; points that
stand for a standard normal, and two normals' chance to be positive."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

_MAX_TERMS = 8  # of sinh_excess_series: more cost more than a logarithm
_SERIES_BELOW = 0.1  # |y| under which the difference loses digits and the power series is used instead
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(48)  # of the integral in log_both_above
_MOST_CORRELATED = 0.9999  # beyond it the integrand has a peak that these points miss
_LEAST = 1e-9  # of the product: what rounding leaves of a smaller share is noise
_LARGE = 40.0  # logarithm of a ratio to which adding one changes no digit


def on_host(tensor: Tensor) -> bool:
    """Whether its values can be looked at for nothing; an accelerator would have to finish its work first."""
    return tensor.device.type == "cpu"


def exp_excess(y: Tensor, expm1_y: Tensor | None = None) -> Tensor:
    """exp(y) - 1 - y >= 0, elementwise and outside the gradient graph, to about 20 roundings for every y.

    ``expm1_y`` may be handed in where it is known. Below |y| = 0.1 a power series is used.
    """
    with torch.no_grad():
        small = (y.abs() < _SERIES_BELOW).to(y.dtype)
        series = _excess_series(y.clamp(-_SERIES_BELOW, _SERIES_BELOW))
        direct = (torch.expm1(y) if expm1_y is None else expm1_y) - y
        # Two products are three times as fast on a CPU as torch.where, whose branch is not predictable here.
        return direct.mul_(1.0 - small).addcmul_(series, small)


def exp_excess_and_growth(y: Tensor) -> tuple[Tensor, Tensor]:
    """exp(y) - 1 - y and its derivative exp(y) - 1, elementwise and outside the gradient graph."""
    if on_host(y) and max(map(abs, torch.aminmax(y))) < _SERIES_BELOW:
        excess = _excess_series(y)
        return excess, excess + y
    growth = torch.expm1(y)
    return exp_excess(y, growth), growth


def _excess_series(y: Tensor) -> Tensor:
    """y^2/2 (1 + y/3 (1 + y/4 (...))) for |y| < 0.1, cut where its next term is below the dtype's resolution."""
    one, last = y.new_ones(()), 11 if y.dtype == torch.float64 else 6
    series = torch.addcmul(one, one, y, value=1.0 / last)
    for order in range(last - 1, 2, -1):
        torch.addcmul(one, series, y, value=1.0 / order, out=series)
    return series.mul_(y).mul_(y).mul_(0.5)


class _ExpExcess(torch.autograd.Function):
    """exp_excess with its exact derivative expm1(y), which automatic differentiation would get by cancellation."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        (y,) = args
        ctx.save_for_backward(y)
        return exp_excess(y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad_outputs[0] * torch.expm1(y)


def differentiable_exp_excess(y: Tensor) -> Tensor:
    """exp(y) - 1 - y, elementwise, accurate in value and in gradient."""
    return cast(Tensor, _ExpExcess.apply(y))


def sinh_excess_series(largest: float, dtype: torch.dtype) -> list[float] | None:
    """c_1, c_2, ... such that 2 (sinh(eta) - eta) = z^3 (c_1 + c_2 z^2 + ...), z = 2 sinh(eta), for |eta| <= largest.

    The terms alternate in sign and shrink, so what is cut off is less than the next one. As many are given as leave
    exp(2 eta) - 1 - 2 eta = (exp(eta) - 1) z + 2 (sinh(eta) - eta), which is about z^2 / 2, an error below the dtype's
    resolution; None where that takes more than 8, which is beyond a ``largest`` of about 0.5 in float32.
    """
    if not largest < 0.5:
        return None
    z = 2.0 * math.sinh(largest)
    # arcsinh's series: c_m = (-1)^(m + 1) binomial(2 m, m) / (16^m (2 m + 1)).
    coefficients = [(-1.0) ** (m + 1) * math.comb(2 * m, m) / (16.0**m * (2 * m + 1)) for m in range(1, _MAX_TERMS + 2)]
    for terms in range(1, _MAX_TERMS + 1):
        if 2.0 * abs(coefficients[terms]) * z ** (2 * terms + 1) < torch.finfo(dtype).eps:
            return coefficients[:terms]
    return None


def sinh_excess_sum(delta: Tensor, z: Tensor, series: Sequence[float], square: Tensor, nested: Tensor) -> Tensor:
    """Sum of exp(2 eta) - 1 - 2 eta = z (delta + z^2 (c_1 + z^2 (c_2 + ...))): delta = exp(eta) - 1, z = 2 sinh(eta).

    ``series`` is that of ``sinh_excess_series``; ``square`` and ``nested`` are memory of z's shape, overwritten.
    """
    torch.mul(z, z, out=square)
    *addends, innermost = (delta, *(delta.new_tensor(coefficient) for coefficient in series[:-1]))
    torch.add(innermost, square, alpha=series[-1], out=nested)
    for addend in reversed(addends):
        torch.addcmul(addend, square, nested, out=nested)
    return nested.mul_(z).sum()


def log_ratio_excess_sum(delta: Tensor, sigma: Tensor, theta_sigma: Tensor) -> Tensor:
    """Sum of exp(2 eta) - 1 - 2 eta for eta = log(sigma / sigma') of any size; delta = exp(eta) - 1."""
    return exp_excess(2.0 * _log_ratio(delta, sigma, theta_sigma), delta * (delta + 2.0)).sum()


def _log_ratio(delta: Tensor, sigma: Tensor, theta_sigma: Tensor) -> Tensor:
    """log(sigma / sigma'): from the excess near 1, from the ratio where the excess nears -1 and has lost its digits."""
    # On a CPU the selection costs more than the logarithms, and is needed for few tiles.
    if on_host(delta) and delta.amin() > -0.5:
        return delta.log1p()
    return torch.where(delta > -0.5, delta.log1p(), torch.log(sigma / theta_sigma))


def normal_points(dimension: int, count: int) -> Tensor:
    """(``count``, dimension): a low-discrepancy set with the standard normal's density, and its mirror image."""
    sobol = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    uniform = sobol.draw(count // 2, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    points = torch.special.ndtri(uniform)
    return torch.cat([points, -points])


def log_both_above(one: Tensor, other: Tensor, correlation: Tensor) -> Tensor:
    """log P(x > -one, y > -other) of standard normals x and y with a ``correlation`` r, to about 1e-6.

    The probability is that of independent ones plus the integral of exp(-(h^2 + k^2 - 2 h k sin t) / (2 cos^2 t)) / 2
    pi over t from 0 to arcsin r (Drezner and Wesolowsky 1990), here by Gauss and Legendre; 1e-9 of the independent
    ones' at least.
    """
    half = torch.arcsin(correlation.clamp(-_MOST_CORRELATED, _MOST_CORRELATED)) / 2
    angles = half[..., None] * (1 + half.new_tensor(_POINTS))
    h, k = one[..., None], other[..., None]
    exponent = (h.square() + k.square() - 2 * h * k * angles.sin()) / (2 * angles.cos().square())
    apart = torch.special.log_ndtr(one) + torch.special.log_ndtr(other)
    # The integral over ``apart``, as a logarithm where it is large: far out both are below the least number.
    mean = torch.logsumexp(half.new_tensor(_WEIGHTS).log() - exponent - apart[..., None], -1) - math.log(2 * math.pi)
    log_ratio = mean + half.clamp(min=torch.finfo(half.dtype).tiny).log()
    is_large = log_ratio > _LARGE
    ratio = half * torch.where(is_large, 0.0, mean).exp()
    return apart + torch.where(is_large, log_ratio, torch.log1p(ratio.clamp(min=_LEAST - 1)))


def bisect(rising: Callable[[float], float], low: float, high: float, halvings: int) -> float:
    """Where a function that rises from below zero reaches it, within the bounds; a bound where it does not in them."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
