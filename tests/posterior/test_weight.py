"""The weight space's start, mean path and diagnostics."""

import math

import pytest
import torch
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior import Prior, WeightSpace


@pytest.mark.parametrize(("k", "floor"), [(1, 0.0), (4, 0.0), (4, 0.01)])
def test_start_is_a_zero_update_with_one_standard_deviation_everywhere(generator, dense_normal, k, floor):
    space = WeightSpace(2.0, k, floor, init_log_sigma=-3.0)
    factors = space.init(2, 5, 16, 3, generator)
    assert [tuple(tensor.shape) for tensor in factors] == [(2, 3, 16), (2, 5, 3), (2, k, 16), (2, 5, k)]
    assert all(tensor.dtype == torch.float32 for tensor in factors)
    normal = dense_normal(factors, 2.0, floor)
    torch.testing.assert_close(normal.stddev, torch.full((2, 5, 16), math.exp(-3) + floor, dtype=torch.float64))
    assert torch.count_nonzero(normal.mean) == 0
    assert 0.2 < factors.mean_A.abs().max() <= 0.25  # uniform within 1 / sqrt(16)


def test_components_of_a_fresh_sigma_can_part(generator):
    space = WeightSpace(2.0, sigma_rank=2)
    factors = space.init(1, 5, 16, 3, generator).requires_grad_()
    space.negative_log_prior(factors, Prior(1.0, 2.0, 0.5)).backward()
    assert factors.scale_B.grad is not None
    assert not torch.allclose(factors.scale_B.grad[..., 0], factors.scale_B.grad[..., 1])


def test_means_do_not_depend_on_the_rank_of_sigma():
    first, second = (WeightSpace(2.0, k).init(1, 5, 16, 3, torch.Generator().manual_seed(3)).mean_A for k in (1, 2))
    assert torch.equal(first, second)


def test_mean_path_is_plain_lora_and_computes_in_the_factors_precision(delta, make_factors, generator):
    layer = make_factors(num_layers=1, dtype=torch.float32).unbind()[0]
    x = torch.randn(2, 3, 7, generator=generator).bfloat16()
    expected = 2.0 * F.linear(F.linear(x.float(), layer.mean_A), layer.mean_B)
    update = delta(WeightSpace(2.0), layer, x, None)
    assert update.dtype == torch.float32
    torch.testing.assert_close(update, expected)


@pytest.mark.parametrize(("k", "floor"), [(1, 0.0), (3, 0.0), (1, 0.3)])
def test_log_sigma_mean_equals_the_dense_mean(make_factors, dense_normal, k, floor):
    factors = make_factors(k=k).requires_grad_()
    mean = WeightSpace(2.0, k, floor).log_sigma_mean(factors)
    assert not mean.requires_grad
    torch.testing.assert_close(mean, dense_normal(factors, 2.0, floor).stddev.log().mean().detach())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"sigma_rank": 0}, "sigma_rank=0.*give a sigma_rank of 1 or more"),
        ({"sigma_floor": -0.1}, "sigma_floor=-0.1"),
        ({"sigma_floor": float("nan")}, "sigma_floor=nan.*give finite numbers"),
        ({"init_log_sigma": float("inf")}, "init_log_sigma=inf"),
    ],
)
def test_impossible_settings_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        WeightSpace(2.0, **settings)
