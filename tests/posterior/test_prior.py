"""-log p(theta) of the weight space against torch.distributions."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal

from abmll.common.errors import ConfigError
from abmll.posterior import Factors, Prior, WeightSpace

SCALING = 2.0
PRIOR = Prior(std=0.7, gamma_shape=2.5, gamma_rate=0.3)


def dense_negative_log_prior(normal: Normal, prior: Prior) -> Tensor:
    values = (0.0, prior.std, prior.gamma_shape, prior.gamma_rate)
    zero, std, shape, rate = (torch.tensor(value, dtype=torch.float64) for value in values)
    return -(Normal(zero, std).log_prob(normal.mean) + Gamma(shape, rate).log_prob(normal.stddev**-2)).sum()


@pytest.mark.parametrize(("k", "floor"), [(1, 0.0), (1, 0.2), (3, 0.0), (3, 0.2)])
@pytest.mark.parametrize("prior", [PRIOR, Prior(1.0, 1.0, 0.01)])
def test_value_and_gradients_equal_torch_distributions(make_factors, dense_normal, k, floor, prior):
    theta = make_factors(k=k).requires_grad_()
    expected = dense_negative_log_prior(dense_normal(theta, SCALING, floor), prior)
    value = WeightSpace(SCALING, k, floor).negative_log_prior(theta, prior)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=0.0)
    pairs = zip(torch.autograd.grad(value, theta), torch.autograd.grad(expected, theta), strict=True)
    for mine, oracle in pairs:
        torch.testing.assert_close(mine, oracle, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2])
def test_finite_differences(make_factors, k):
    leaves = tuple(make_factors(num_layers=1, d_out=2, d_in=3, r=1, k=k).requires_grad_())
    space = WeightSpace(SCALING, k)
    assert torch.autograd.gradcheck(lambda *tensors: space.negative_log_prior(Factors(*tensors), PRIOR), leaves)


def test_opposite_large_factors_stay_in_range_in_single_precision(make_factors, dense_normal):
    theta = make_factors(dtype=torch.float32)
    moved = theta._replace(scale_A=theta.scale_A - 60.0, scale_B=theta.scale_B + 60.0)
    expected = dense_negative_log_prior(dense_normal(moved, SCALING), PRIOR)
    value = WeightSpace(SCALING).negative_log_prior(moved, PRIOR)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("values", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0), (float("nan"), 1.0, 1.0)])
def test_impossible_priors_are_refused(values):
    with pytest.raises(ConfigError, match="give a number above 0"):
        Prior(*values)
