"""Covariance of linear functions of the weights against the dense Gaussian over them."""

import pytest
import torch
from torch import Tensor

from abmll.posterior import Factors, Noise, OutputSpace, WeightSpace

N, D_IN, D_OUT = 2, 7, 5


def dense_oracle(x: Tensor, gradients: Tensor, sigma: Tensor) -> Tensor:
    jacobian = torch.einsum("ndti,ntj->ndij", gradients, x)
    return torch.einsum("ndij,neij,ij->nde", jacobian, jacobian, sigma.square())


@pytest.mark.parametrize(("k", "floor"), [(1, 0.0), (3, 0.0), (1, 0.2)])
@pytest.mark.parametrize(("num_functions", "num_tokens"), [(1, 1), (3, 2), (2, 30)])
def test_weight_space(make_factors, dense_normal, generator, k, floor, num_functions, num_tokens):
    """Few tokens go through their inner products, many through the gradients of the weights."""
    factors = make_factors(num_layers=1, d_out=D_OUT, d_in=D_IN, k=k)
    x = torch.randn(N, num_tokens, D_IN, generator=generator, dtype=torch.float64)
    gradients = torch.randn(N, num_functions, num_tokens, D_OUT, generator=generator, dtype=torch.float64)
    got = WeightSpace(2.0, k, floor).linear_covariance(factors.unbind()[0], x, gradients)
    torch.testing.assert_close(got, dense_oracle(x, gradients, dense_normal(factors, 2.0, floor).stddev[0]))


def test_sampled_functions_have_this_covariance(delta, make_factors, generator):
    """Within six standard errors of exact weight samples."""
    layer = make_factors(num_layers=1, d_out=D_OUT, d_in=D_IN).unbind()[0]
    space, draws = WeightSpace(2.0), 20_000
    x = torch.randn(1, 4, D_IN, generator=generator, dtype=torch.float64)
    gradients = torch.randn(1, 2, 4, D_OUT, generator=generator, dtype=torch.float64)
    many = x.expand(draws, -1, -1)
    noise = delta(space, layer, many, Noise("shared", generator)) - delta(space, layer, many, None)
    values = torch.einsum("dti,nti->nd", gradients[0], noise)
    expected = space.linear_covariance(layer, x, gradients)[0]
    variance = expected.diagonal()
    standard_error = ((variance[:, None] * variance + expected.square()) / draws).sqrt()
    assert ((values.mT @ values / draws - expected).abs() < 6 * standard_error).all()


def test_output_space_sums_over_tokens_and_channels(generator):
    space = OutputSpace(2.0, -1.0)
    layer = space.init(1, D_OUT, D_IN, 2, generator).unbind()[0]
    layer = Factors(*layer[:3], 0.3 * torch.randn(D_OUT, 2, generator=generator))
    x = torch.randn(N, 3, D_IN, generator=generator)
    gradients = torch.randn(N, 2, 3, D_OUT, generator=generator)
    variance = torch.exp(2.0 * x @ layer.scale_A.mT @ layer.scale_B.mT - 2.0)
    expected = torch.einsum("ndti,neti,nti->nde", gradients, gradients, variance)
    torch.testing.assert_close(space.linear_covariance(layer, x, gradients), expected)
