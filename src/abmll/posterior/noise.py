"""Sampling a layer's output when its weights are Gaussian, without forming the d_out x d_in matrix where possible.

A weight sample is E with E_ij = sigma_ij z_ij; the output noise of a token x is E x. ``positive_B`` (d_out, k) and
``positive_A`` (k, d_in) are the positive factors of sigma = positive_B @ positive_A.
"""

import torch
from torch import Tensor

from abmll.posterior.tiled import row_tiles


def draw(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the given shape, with the dtype and device of ``like``."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def local_std(x: Tensor, positive_B: Tensor, positive_A: Tensor) -> Tensor:
    """(..., d_in) -> (..., d_out): the standard deviation of every output channel of every token.

    At rank 1 it is ||x * a|| b. Else the variance is sum_j x_j^2 (sum_k b_ik a_kj)^2, a sum over the pairs (k, l) of
    (b_ik b_il) (sum_j x_j^2 a_kj a_lj): all terms positive, and again a low-rank product.
    """
    k = positive_A.shape[0]
    if k == 1:
        return torch.linalg.vector_norm(x * positive_A[0], dim=-1, keepdim=True) * positive_B[:, 0]
    first, second = torch.triu_indices(k, k, device=x.device)
    twice_off_diagonal = 2.0 - (first == second).to(x.dtype)
    pairs_A = positive_A[first] * positive_A[second] * twice_off_diagonal[:, None]
    pairs_B = positive_B[:, first] * positive_B[:, second]
    variance = (x.square() @ pairs_A.mT) @ pairs_B.mT
    # The clamp gives an all-zero token the gradient 0 instead of 0 * inf.
    return variance.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def shared_noise(
    x: Tensor, positive_B: Tensor, positive_A: Tensor, mask: Tensor | None, generator: torch.Generator
) -> Tensor:
    """(N, T, d_in) -> (N, T, d_out): x E^T with one weight sample E per example; zero on padding (mask False)."""
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    if positive_A.shape[0] == 1:
        return _shared_rank_one(x * positive_A[0], generator, positive_B.shape[0]) * positive_B[:, 0]
    return _shared_dense(x, positive_B, positive_A, generator)


def _shared_rank_one(x: Tensor, generator: torch.Generator, d_out: int) -> Tensor:
    """x W for a standard normal W (d_in, d_out) per example, exactly, from min(T, d_in) x d_out numbers.

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
