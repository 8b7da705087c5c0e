"""Covariance of linear functions of a layer's weights, for predictions to first order in the weights.

For W with independent entries of standard deviation sigma_ij, the function sum_t g_t . W x_t has the gradient
J = sum_t g_t x_t^T, and two such functions the covariance sum_ij J_ij J'_ij sigma_ij^2.
"""

import torch
from torch import Tensor


def rank_one_covariance(x: Tensor, gradients: Tensor) -> Tensor:
    """(N, D, D) from tokens x diag(a) (N, T, d_in) and gradients g diag(b) (N, D, T, d_out), sigma_ij = b_i a_j.

    Either through the gradients J themselves or, for short sequences, through the tokens' inner products:
    sum_ij J_ij J'_ij = sum_tu (g_t . g'_u) (x_t . x_u). Whichever takes fewer operations.
    """
    num_functions, num_tokens, d_out = gradients.shape[1:]
    d_in = x.shape[-1]
    by_tokens = num_tokens * (d_in + num_functions**2 * d_out)
    if by_tokens < num_functions * d_in * d_out:
        return _through_tokens(x, gradients)
    jacobian = _jacobian(x, gradients).flatten(2)
    return jacobian @ jacobian.mT


def dense_covariance(x: Tensor, gradients: Tensor, sigma: Tensor) -> Tensor:
    """(N, D, D) from tokens (N, T, d_in), gradients (N, D, T, d_out) and any sigma (d_out, d_in)."""
    covariances = []
    for tokens, rows in zip(x, gradients, strict=True):
        jacobian = (_jacobian(tokens[None], rows[None])[0] * sigma).flatten(1)
        covariances.append(jacobian @ jacobian.mT)
    return torch.stack(covariances)


def _jacobian(x: Tensor, gradients: Tensor) -> Tensor:
    """J (N, D, d_out, d_in)."""
    return gradients.mT @ x[:, None]


def _through_tokens(x: Tensor, gradients: Tensor) -> Tensor:
    num_examples, num_functions, num_tokens, _ = gradients.shape
    flat = gradients.flatten(1, 2)
    products = (flat @ flat.mT).view(num_examples, num_functions, num_tokens, num_functions, num_tokens)
    return torch.einsum("ndteu,ntu->nde", products, x @ x.mT)
