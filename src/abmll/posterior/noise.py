"""Sampling a layer's output when its weights are Gaussian, without forming the d_out x d_in matrix where possible.

A weight sample is E with E_ij = sigma_ij z_ij; the output noise of a token x is E x. ``positive_B`` (d_out, k) and
``positive_A`` (k, d_in) are the positive factors of sigma = positive_B @ positive_A.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.posterior.space import LowRank, Noise
from abmll.posterior.tiles import row_tiles


def draw(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the given shape, with the dtype and device of ``like``."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _local_std(x: Tensor, positive_B: Tensor, positive_A: Tensor) -> Tensor:
    """(..., d_in) -> (..., d_out): the standard deviation of every output channel of every token.

    At rank 1 it is ||x * a|| b. Else the variance is sum_j x_j^2 (sum_k b_ik a_kj)^2, a sum over the pairs (k, l) of
    (b_ik b_il) (sum_j x_j^2 a_kj a_lj): all terms positive, and again a low-rank product.
    """
    if positive_A.shape[0] == 1:
        return _token_std(x, positive_A[0]) * positive_B[:, 0]
    first, second = _pairs(positive_A)
    return _quadratic_root(F.linear(x.square(), positive_A[first] * positive_A[second]), positive_B)


def _pairs(positive_A: Tensor) -> Tensor:
    """(2, P): the pairs of components k <= l."""
    k = positive_A.shape[0]
    return torch.triu_indices(k, k, device=positive_A.device)


def _quadratic_root(products: Tensor, positive_B: Tensor) -> Tensor:
    """(..., P) -> (..., d_out): the root of sum_kl b_ik b_il products_kl, for the ``products`` of the pairs k <= l."""
    first, second = _pairs(positive_B.mT)
    twice_off_diagonal = 2.0 - (first == second).to(products.dtype)
    square = F.linear(products, positive_B[:, first] * positive_B[:, second] * twice_off_diagonal)
    # The clamp gives an all-zero token the gradient 0 instead of 0 * inf.
    return square.clamp_min(torch.finfo(products.dtype).tiny).sqrt()


def random_units(x: Tensor, noise: Noise) -> Tensor:
    """(..., d_in) -> (..., m): a random unit vector for every token, for local noise of rank m.

    For U (d_out, m) of standard normal numbers and a unit vector u, U u is standard normal whatever u is, and that of
    another token has covariance u^T u' with it: zero on average. So m numbers a channel and token stand for T d_out.
    """
    return F.normalize(draw((*x.shape[:-1], noise.rank), x, noise.generator), dim=-1)


def shared_directions(positive_A: Tensor, noise: Noise) -> Sequence[Tensor | None]:
    """L times diag(a) V (d_in, m), V standard normal, for positive_A (L, d_in); None where the noise is local.

    In shared noise of rank m a token's unit vector u (see ``random_units``) lies along V^T diag(a) x: u^T u' is then
    about the cosine between the scaled tokens, which is their noise's correlation under one weight sample.
    """
    if noise.kind == "local":
        return [None] * len(positive_A)
    normal = draw((*positive_A.shape, noise.rank), positive_A, noise.generator)
    return (positive_A[..., None] * normal).unbind()


class _TokenStd(torch.autograd.Function):
    """sqrt(sum_j x_j^2 a_j^2) with fewer passes over x than automatic differentiation takes; 0 has the gradient 0."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Tensor:
        x, a = args
        std = (x.square() @ a.square()).sqrt()
        ctx.save_for_backward(x, a, std)
        return std

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor]:
        x, a, std = ctx.saved_tensors
        share = grad_outputs[0] / std.clamp_min(torch.finfo(std.dtype).tiny)
        by_a = a * (share.flatten() @ x.square().flatten(0, -2))
        return x * (share[..., None] * a.square()), by_a


def _token_std(x: Tensor, a: Tensor) -> Tensor:
    """(..., d_in), (d_in,) -> (..., 1): the length of every token of X diag(a)."""
    return cast(Tensor, _TokenStd.apply(x, a))[..., None]


def sampled_outputs(
    x: Tensor, left: Tensor, right: Tensor, square_A: Tensor, units: Tensor, least: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """Outputs (M, d_out) of G layers with noise of rank m for one input x (M, d_in), in its dtype.

    Layer g of those with D outputs together adds  left_g [right_g x; ||a_g x|| u_g]  for a unit vector u_g a token:
    left (D, G (r + m)) has the columns of all means, then those of all noises; right (G r, d_in), square_A (G m, d_in)
    is a^2, m times for each layer (its gradient is added up where it was repeated, for all layers at once); units
    (M, G, m), and ``sizes`` has every d_out. ``least`` is the smallest normal number: a token of zeros has the
    gradient 0.
    """
    return cast("tuple[Tensor, ...]", _LowRankSample.apply(x, left, right, square_A, units, least, sizes))


class _LowRankSample(torch.autograd.Function):
    """Many small steps in one node: on thin layers the bookkeeping between them costs more than they do."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        x, left, right, square_A, units, least, sizes = args
        wide, rank = x.to(right.dtype), len(right)
        std = _std(wide, square_A[:: units.shape[2]], least)
        joint = wide.new_empty(len(x), left.shape[1])
        torch.mm(wide, right.mT, out=joint[:, :rank])
        torch.mul(units, std, out=joint[:, rank:].view(units.shape))
        ctx.save_for_backward(x, left, right, square_A, units, least, wide, std, joint)
        return (joint @ left.mT).to(x.dtype).split(sizes, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        # Nothing in place: this is differentiated again where a rule's gradient goes through its inner steps.
        x, left, right, square_A, units, least, wide, std, joint = ctx.saved_tensors
        rank = len(right)
        if not torch.is_grad_enabled():
            gradient = torch.cat(grad_outputs, 1, out=joint.new_empty(len(joint), len(left)))
        else:  # what was computed on the way is a constant otherwise
            gradient = torch.cat(grad_outputs, 1).to(left.dtype)
            wide = x.to(right.dtype)
            std = _std(wide, square_A[:: units.shape[2]], least)
            joint = torch.cat([wide @ right.mT, (units * std).flatten(1)], 1)
        by_joint = gradient @ left
        by_mean, by_noise = by_joint[:, :rank], by_joint[:, rank:].view(units.shape)
        share = (by_noise * units / std).flatten(1)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = torch.addcmul(by_mean @ right, wide, share @ square_A).to(x.dtype)
        by_square = torch.addmm(square_A, share.mT, wide.square(), beta=0, alpha=0.5)
        by_units = std * by_noise if ctx.needs_input_grad[4] else None
        return by_x, gradient.mT @ joint, by_mean.mT @ wide, by_square, by_units, None, None


def _std(x: Tensor, square_A: Tensor, least: Tensor) -> Tensor:
    """(M, d_in), (G, d_in) -> (M, G, 1): the length of every token of X diag(a)."""
    return torch.addmm(least, x.square(), square_A.mT).sqrt()[..., None]


@dataclass(frozen=True)
class LowRankUpdate:
    """One layer, sigma of rank 1, noise of rank m: left [right x; ||a x|| u] with a unit vector u for every token."""

    left: Tensor  # (d_out, r + m): factors of the mean, then of the noise
    right: Tensor  # (r, d_in)
    positive_A: Tensor  # a (d_in,)
    square_A: Tensor  # a^2 (m, d_in), m times the same
    directions: Tensor | None  # (d_in, m), shared noise only
    least: Tensor  # see ``sampled_outputs``
    noise: Noise

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.right.dtype)
        units = random_units(x, self.noise) if self.directions is None else F.normalize(x @ self.directions, dim=-1)
        factors, each = (self.left, self.right, self.square_A), units.flatten(0, -2)[:, None]
        [output] = sampled_outputs(x.flatten(0, -2), *factors, each, self.least, [len(self.left)])
        return output.view(*x.shape[:-1], len(self.left))


def smallest(like: Tensor) -> Tensor:
    """The smallest normal number of its dtype, a scalar on its device."""
    return like.new_full((), torch.finfo(like.dtype).tiny)


@dataclass(frozen=True)
class NoisyUpdate:
    """One layer with exact noise, or a sigma of higher rank."""

    left: Tensor  # (d_out, r)
    right: Tensor  # (r, d_in)
    positive_B: Tensor  # (d_out, k)
    positive_A: Tensor  # (k, d_in)
    noise: Noise

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.right.dtype)
        mean, noise = LowRank(self.left, self.right)(x), self.noise
        if noise.rank:
            return mean + _low_rank_noise(x, self.positive_B, self.positive_A, noise)
        if noise.kind == "local":
            std = _local_std(x, self.positive_B, self.positive_A)
            return torch.addcmul(mean, std, draw(tuple(std.shape), std, noise.generator))
        return mean + _shared_noise(x, self.positive_B, self.positive_A, noise)


def _low_rank_noise(x: Tensor, positive_B: Tensor, positive_A: Tensor, noise: Noise) -> Tensor:
    """(..., d_in) -> (..., d_out): noise of ``noise.rank`` m for a sigma of any rank k, exactly normal at every token.

    For shared noise channel i has its own unit vector, along sum_k b_ik V^T (a_k * x), V the random directions: the
    product of rank k m below gives U_i . w_i, and the ratio of the exact to its own standard deviation sets the scale.
    """
    std = _local_std(x, positive_B, positive_A)
    normal = draw((positive_B.shape[0], noise.rank), x, noise.generator)
    if noise.kind == "local":
        return std * F.linear(random_units(x, noise), normal)
    directions = draw((x.shape[-1], noise.rank), x, noise.generator)
    images = torch.einsum("...j,kj,jm->...km", x, positive_A, directions)
    left = positive_B[:, :, None] * normal[:, None, :]
    first, second = _pairs(positive_A)
    length = _quadratic_root((images[..., first, :] * images[..., second, :]).sum(-1), positive_B)
    return std * F.linear(images.flatten(-2), left.flatten(1)) / length


def _shared_noise(x: Tensor, positive_B: Tensor, positive_A: Tensor, noise: Noise) -> Tensor:
    """(N, T, d_in) -> (N, T, d_out): x E^T with one weight sample E per row; zero on padding."""
    if noise.mask is not None:
        x = x.masked_fill(~noise.mask.unsqueeze(-1), 0.0)
    if positive_A.shape[0] == 1:
        return _shared_rank_one(x * positive_A[0], noise.generator, positive_B.shape[0]) * positive_B[:, 0]
    return _shared_dense(x, positive_B, positive_A, noise.generator)


def _shared_rank_one(x: Tensor, generator: torch.Generator, d_out: int) -> Tensor:
    """x W for a standard normal W (d_in, d_out) per row, exactly, from min(T, d_in) x d_out numbers.

    Let the columns of Q (d_in, T) be an orthonormal basis that contains the tokens: x W = (x Q) (Q^T W), and Z = Q^T W
    is standard normal. Householder QR gives such a Q even where tokens repeat or are zero, in single precision, which
    a Cholesky factor of the Gram matrix does not. The gradient treats Q Z as the constant weight sample: that is the
    expectation of the usual pathwise gradient given Z, so it is unbiased, has less variance, and QR is not
    differentiated.
    """
    num_examples, num_tokens, d_in = x.shape
    if num_tokens >= d_in:
        return x @ draw((num_examples, d_in, d_out), x, generator)
    normal = draw((num_examples, num_tokens, d_out), x, generator)
    tokens = x.detach().mT
    if torch.is_grad_enabled() and x.requires_grad:
        return (x @ torch.linalg.qr(tokens).Q) @ normal
    return torch.linalg.qr(tokens, mode="r").R.mT @ normal


def _shared_dense(x: Tensor, positive_B: Tensor, positive_A: Tensor, generator: torch.Generator) -> Tensor:
    """x E^T with E drawn entry by entry, a tile of rows at a time.

    Without gradients memory stays at a tile; with them all N d_out d_in numbers are kept for the backward pass.
    """
    num_examples, _, d_in = x.shape
    outputs = []
    for rows in row_tiles(num_examples, positive_B.shape[0], d_in, x.device):
        sigma = positive_B[rows] @ positive_A
        weights = sigma * draw((num_examples, *sigma.shape), x, generator)
        outputs.append(x @ weights.mT)
    return torch.cat(outputs, dim=-1)
