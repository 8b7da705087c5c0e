"""KL and Gamma prior for standard deviations of any rank, sigma_ij = sum_k exp(b_ik + a_kj) + c, by tiles.

log sigma does not separate here, so every weight is visited; but only a tile of them at a time, and the gradients of
the factors are taken in the same pass. Memory stays at a few tiles, whatever the layers' number and size. A tile's
cost is its passes over memory, so each is written to a buffer that all tiles share, and what no gradient needs is not
computed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from abmll.posterior.factors import Factors
from abmll.posterior.numerics import log_ratio_excess_sum, sinh_excess_series, sinh_excess_sum
from abmll.posterior.space import Prior

_Gradients = tuple[Tensor | None, ...]
_Evaluate = Callable[..., tuple[Tensor, _Gradients]]


class _ScalarWithGradients(torch.autograd.Function):
    """A scalar function of tensors whose forward pass already yields the gradients."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        evaluate, *tensors = args
        value, gradients = evaluate(*tensors)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> _Gradients:
        # torch's once_differentiable would not notice here: the saved gradients are constants, so a second
        # derivative through this term would silently be zero.
        if torch.is_grad_enabled():
            raise NotImplementedError("a standard deviation of rank > 1 or with a floor is differentiable only once")
        return (None, *(None if gradient is None else grad_outputs[0] * gradient for gradient in ctx.saved_tensors))


def _apply(evaluate: _Evaluate, tensors: Sequence[Tensor]) -> Tensor:
    value = _ScalarWithGradients.apply(evaluate, *tensors)
    assert isinstance(value, Tensor)
    return value


def row_tiles(num_layers: int, d_out: int, d_in: int, device: torch.device) -> list[slice]:
    """Slices of the d_out rows such that a (num_layers, rows, d_in) tile fits a CPU's cache, or fills a GPU."""
    rows = max(1, _tile_elements(device) // (num_layers * d_in))
    return [slice(start, min(start + rows, d_out)) for start in range(0, d_out, rows)]


def _tile_elements(device: torch.device) -> int:
    return 2**18 if device.type == "cpu" else 2**23


class _Tiles:
    """The tiles of L matrices d_out x d_in, whole layers as far as they fit, and the buffers that they share."""

    def __init__(self, left: Tensor, right: Tensor, buffers: int) -> None:
        """``left`` (L, d_out, k) and ``right`` (L, k, d_in) say what the matrices' shape, dtype and device are."""
        self.num_layers, self.d_out, self.d_in = left.shape[0], left.shape[1], right.shape[2]
        self.device = left.device
        self.layers = min(max(1, _tile_elements(self.device) // (self.d_out * self.d_in)), self.num_layers)
        largest = max(rows.stop - rows.start for rows in self._rows(self.layers)) * self.layers * self.d_in
        self.memory = left.new_empty(buffers, largest)

    def _rows(self, layers: int) -> list[slice]:
        return row_tiles(layers, self.d_out, self.d_in, self.device)

    def __iter__(self) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """The layers and rows of each tile, and its buffers (layers, rows, d_in) with whatever the last tile left."""
        for start in range(0, self.num_layers, self.layers):
            layers = slice(start, min(start + self.layers, self.num_layers))
            for rows in self._rows(layers.stop - start):
                shape = (layers.stop - start, rows.stop - rows.start, self.d_in)
                yield layers, rows, [buffer[: math.prod(shape)].view(shape) for buffer in self.memory]


class _ProductGradient:
    """The gradients of ``left`` (L, d_out, k) and ``right`` (L, k, d_in), from tiles of that of their product."""

    def __init__(self, left: Tensor, right: Tensor, wanted: bool) -> None:
        self.left, self.right = left, right
        self.by_left, self.by_right = torch.zeros_like(left), torch.zeros_like(right)
        self.wanted = wanted

    def add(self, layers: slice, rows: slice, by_product: Tensor) -> None:
        """Take in a tile."""
        self.by_left[layers, rows] = (self.right[layers] @ by_product.mT).mT  # faster than the other way round
        self.by_right[layers].baddbmm_(self.left[layers, rows].mT, by_product)

    def result(self, factor: float) -> _Gradients:
        """Of right and left, times ``factor``; None where they are not wanted."""
        return (self.by_right.mul_(factor), self.by_left.mul_(factor)) if self.wanted else (None, None)

    def result_of_logarithms(self, factor: float) -> _Gradients:
        """The same where right and left are exponentials, of their logarithms."""
        self.by_right.mul_(self.right)
        self.by_left.mul_(self.left)
        return self.result(factor)


def _wanted(*tensors: Tensor) -> bool:
    """Whether anybody will ask for the gradient of any of them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def tiled_kl(phi: Factors, theta: Factors, scaling: float, floor: float) -> Tensor:
    """Sum over L layers and all weights of KL(N(mu, sigma^2) || N(mu', sigma'^2)) in nats, a scalar.

    mu = scaling B A and sigma = exp(scale_B) exp(scale_A) + floor for phi, primed for theta: mean_A (L, r, d_in),
    mean_B (L, d_out, r), scale_A (L, k, d_in), scale_B (L, d_out, k). Differentiable once, in all eight factors.
    """
    wanted = [_wanted(*pair) for pair in (phi[:2], phi[2:], theta[:2], theta[2:])]

    def evaluate(*tensors: Tensor) -> tuple[Tensor, _Gradients]:
        return _kl_and_gradients(Factors(*tensors[:4]), Factors(*tensors[4:]), scaling, floor, wanted)

    return _apply(evaluate, (*phi, *theta))


def _kl_and_gradients(
    phi: Factors, theta: Factors, scaling: float, floor: float, wanted: Sequence[bool]
) -> tuple[Tensor, _Gradients]:
    """The KL and its gradients with respect to phi's four factors, then theta's, those that are ``wanted``.

    With delta = sigma / sigma' - 1, eta = log(1 + delta), z = 2 sinh(eta) and h = (mu - mu') / sigma', an element's KL
    is 1/2 [exp(2 eta) - 1 - 2 eta + h^2]. Its derivatives are z / sigma' by sigma, h / sigma' by mu and
    -(delta (2 + delta) + h^2) / sigma' by sigma'. delta, h and z = delta + (sigma - sigma') / sigma are taken from
    low-rank products of the factors' own differences, hence relatively accurate.
    """
    theta_A, theta_B, phi_A, phi_B, sigma_right, sigma_left = _exponentials(phi, theta)
    mean_left = scaling * torch.cat([phi.mean_B - theta.mean_B, theta.mean_B], dim=-1)
    mean_right = torch.cat([phi.mean_A, phi.mean_A - theta.mean_A], dim=-2)
    by_phi_mean = _ProductGradient(phi.mean_B, phi.mean_A, wanted[0])
    by_phi_scale = _ProductGradient(phi_B, phi_A, wanted[1])
    by_theta_mean = _ProductGradient(theta.mean_B, theta.mean_A, wanted[2])
    by_theta_scale = _ProductGradient(theta_B, theta_A, wanted[3])
    series = _series(phi, theta)
    twice_kl = theta_A.new_zeros((), dtype=torch.float64)
    for layers, rows, buffers in _Tiles(theta_B, theta_A, 6):
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
        for by_mean in (by_phi_mean, by_theta_mean):
            if by_mean.wanted:
                by_mean.add(layers, rows, h)
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
    To look at the bound would make an accelerator wait, and there the series would save nothing.
    """
    shift_A, shift_B = phi.scale_A - theta.scale_A, phi.scale_B - theta.scale_B
    if shift_A.device.type != "cpu":
        return None
    low = shift_A.amin(dim=-1) + shift_B.amin(dim=-2)
    high = shift_A.amax(dim=-1) + shift_B.amax(dim=-2)
    return sinh_excess_series(float(torch.maximum(-low, high).max()), shift_A.dtype)


def tiled_gamma_negative_log_prior(theta: Factors, prior: Prior, floor: float) -> Tensor:
    """sum of 2 (a0 - 1) log sigma + b0 / sigma^2 over L layers and all weights: -log Gamma(1 / sigma^2; a0, b0) in
    nats less its normaliser, a scalar. Differentiable once, in the scale factors."""
    wanted = _wanted(*theta[2:])

    def evaluate(scale_A: Tensor, scale_B: Tensor) -> tuple[Tensor, _Gradients]:
        return _gamma_and_gradients(scale_A, scale_B, prior, floor, wanted)

    return _apply(evaluate, (theta.scale_A, theta.scale_B))


def _gamma_and_gradients(
    scale_A: Tensor, scale_B: Tensor, prior: Prior, floor: float, wanted: bool
) -> tuple[Tensor, _Gradients]:
    exp_A, exp_B = scale_A.exp(), scale_B.exp()
    value = exp_A.new_zeros((), dtype=torch.float64)
    by_scale = _ProductGradient(exp_B, exp_A, wanted)
    log_weight = 2.0 * (prior.gamma_shape - 1.0)
    for layers, rows, (sigma, inverse) in _Tiles(exp_B, exp_A, 2):
        torch.bmm(exp_B[layers, rows], exp_A[layers], out=sigma).add_(floor)
        torch.reciprocal(sigma, out=inverse)
        if log_weight:
            value += log_weight * sigma.log_().sum()
        precision = torch.mul(inverse, inverse, out=sigma)
        value += prior.gamma_rate * precision.sum()
        if wanted:
            by_scale.add(layers, rows, precision.mul_(-2.0 * prior.gamma_rate).add_(log_weight).mul_(inverse))
    return value.to(exp_A.dtype), by_scale.result_of_logarithms(1.0)


def tiled_log_sigma_mean(theta: Factors, floor: float) -> Tensor:
    """The mean of log sigma over L layers and all weights, outside the gradient graph; a scalar."""
    with torch.no_grad():
        exp_A, exp_B = theta.scale_A.exp(), theta.scale_B.exp()
        total = exp_A.new_zeros((), dtype=torch.float64)
        for layers, rows, [sigma] in _Tiles(exp_B, exp_A, 1):
            total += torch.bmm(exp_B[layers, rows], exp_A[layers], out=sigma).add_(floor).log_().sum()
        return (total / (exp_B.shape[0] * exp_B.shape[1] * exp_A.shape[2])).to(exp_A.dtype)
