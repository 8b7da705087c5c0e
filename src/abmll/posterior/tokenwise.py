"""Output space, token by token: the sampled output of a layer and the divergence, in few passes over memory.

Both work on n tokens with d_out channels each. What they need of the input are its low-rank coefficients (n, r), so
that of the n x d_out numbers between only the noise is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from abmll.posterior.numerics import exp_excess_and_growth
from abmll.posterior.tiles import Gradients, ProductGradient, Tiles, in_one_pass


class Perturbed(torch.autograd.Function):
    """mu + sigma eps (n, d_out) for mu = mean mean_left^T, log sigma = half half_left^T + log_sigma and eps = normal.

    ``both`` (n, 2 r) are the tokens' coefficients, mean and half; mean_left, half_left (d_out, r), log_sigma a scalar.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        both, mean_left, half_left, normal, log_sigma = args
        mean, half = both.chunk(2, 1)
        noise = torch.addmm(log_sigma, half, half_left.mT).exp_().mul_(normal)
        ctx.save_for_backward(both, mean_left, half_left, noise)
        return torch.addmm(noise, mean, mean_left.mT)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Gradients:
        both, mean_left, half_left, noise = ctx.saved_tensors
        [gradient] = grad_outputs
        by_half, (mean, half) = gradient * noise, both.chunk(2, 1)
        pairs = (gradient, mean_left), (by_half, half_left)
        if torch.is_grad_enabled():
            by_both = torch.cat([by @ left for by, left in pairs], 1)
        else:
            by_both = torch.empty_like(both)
            for (by, left), part in zip(pairs, by_both.chunk(2, 1), strict=True):
                torch.mm(by, left, out=part)
        return by_both, gradient.mT @ mean, by_half.mT @ half, None, None


def gaussian_kl(
    scale: tuple[Tensor, Tensor], mean: tuple[Tensor, Tensor], theta: tuple[Tensor, Tensor], counts: Tensor | None
) -> Tensor:
    """sum of c/2 [exp(d) - 1 - d + m^2 exp(-v)] over L layers, n tokens, d_out channels: a scalar, differentiable once.

    d is phi's log variance less theta's, m the difference of the means and v theta's log variance: each the product of
    coefficients (L, n, k) and factors (L, k, d_out). ``counts`` c (n,) is how many tokens each stands for; None: one.
    """

    def evaluate(*tensors: Tensor) -> tuple[Tensor, Gradients]:
        return _kl_and_gradients(tensors, counts)

    return in_one_pass(evaluate, (*scale, *mean, *theta))


def _kl_and_gradients(tensors: tuple[Tensor, ...], counts: Tensor | None) -> tuple[Tensor, Gradients]:
    """The KL and its gradients, a tile of layers and tokens at a time."""
    weight = None if counts is None else counts[:, None]
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    weighed = [(left if weight is None else left * weight, right) for left, right in pairs]
    by_products = [ProductGradient(left, right, wanted=True) for left, right in weighed]
    twice_kl = tensors[0].new_zeros((), dtype=torch.float64)
    for layers, rows, buffers in Tiles(*pairs[0], 3):
        for (left, right), product in zip(pairs, buffers, strict=True):
            torch.bmm(left[layers, rows], right[layers], out=product)
        difference, distance, precision = buffers
        excess, growth = exp_excess_and_growth(difference)
        pull = precision.neg_().exp_().mul_(distance)
        square = distance.mul_(pull)
        by_token = excess.add_(square).sum((0, 2)).double()
        twice_kl += by_token.sum() if counts is None else by_token @ counts[rows].double()
        for by_product, gradient in zip(by_products, (growth, pull, square), strict=True):
            by_product.add(layers, rows, gradient)
    gradients = []
    for by_product, factor in zip(by_products, (0.5, 1.0, -0.5), strict=True):
        by_right, by_left = by_product.result(factor)
        assert by_left is not None
        gradients += [by_left if weight is None else by_left.mul_(weight), by_right]
    return (0.5 * twice_kl).to(tensors[0].dtype), tuple(gradients)
