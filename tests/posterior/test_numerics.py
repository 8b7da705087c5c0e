import math
from decimal import Decimal, localcontext

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from abmll.posterior.numerics import (
    differentiable_exp_excess,
    exp_excess,
    log_both_above,
    normal_points,
    sinh_excess_series,
    sinh_excess_sum,
)

MAGNITUDES = [0.0, 1e-8, 1e-6, 1e-3, 0.03, 0.0999, 0.1, 0.1001, 0.3, 1.0, 5.0, 30.0]
RELATIVE = {torch.float32: 5e-6, torch.float64: 1e-14}


def exact(y: float) -> float:
    with localcontext() as context:
        context.prec = 60
        return float(Decimal(y).exp() - 1 - Decimal(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_excess_agrees_with_sixty_digits(dtype):
    y = torch.tensor([sign * magnitude for magnitude in MAGNITUDES for sign in (1, -1)], dtype=dtype)
    expected = torch.tensor([exact(value) for value in y.tolist()], dtype=torch.float64)
    torch.testing.assert_close(exp_excess(y).double(), expected, rtol=RELATIVE[dtype], atol=0.0)
    torch.testing.assert_close(exp_excess(y, torch.expm1(y)).double(), expected, rtol=RELATIVE[dtype], atol=0.0)


def test_exp_excess_overflows_to_infinity_and_not_to_nan():
    assert exp_excess(torch.tensor([1000.0])).item() == float("inf")


def test_gradient_is_expm1_without_cancellation():
    y = torch.tensor([1e-6, -1e-3, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(differentiable_exp_excess(y).sum(), y)
    torch.testing.assert_close(gradient.double(), torch.expm1(y.detach().double()), rtol=1e-6, atol=0.0)
    z = torch.tensor([-0.4, 0.02, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(differentiable_exp_excess, (z,))
    assert torch.autograd.gradgradcheck(differentiable_exp_excess, (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [0.0, 1e-6, 1e-3, 0.02, 0.1, 0.3, 0.45])
def test_the_series_is_cut_where_its_dtype_ends(dtype, largest):
    """In sixty digits, at the largest argument: exp(2 eta) - 1 - 2 eta is met to the dtype's resolution."""
    series = sinh_excess_series(largest, dtype)
    if series is None:
        assert largest >= (0.1 if dtype == torch.float64 else 0.5)
        return
    assert len(series) <= 8
    with localcontext() as context:
        context.prec = 60
        for eta in (Decimal(largest), -Decimal(largest)):
            delta, z = eta.exp() - 1, eta.exp() - (-eta).exp()
            value = z * (delta + sum(Decimal(c) * z ** (2 * m) for m, c in enumerate(series, start=1)))
            expected = (2 * eta).exp() - 1 - 2 * eta
            assert abs(value - expected) <= 2 * Decimal(torch.finfo(dtype).eps) * expected


@pytest.mark.parametrize("largest", [0.51, 3.0, float("inf"), float("nan")])
def test_there_is_no_series_far_away(largest):
    assert sinh_excess_series(largest, torch.float32) is None


@pytest.mark.parametrize("largest", [1e-6, 0.02, 0.3])
def test_the_summed_series_equals_the_sum_of_exp_excess(largest):
    eta = largest * torch.linspace(-1.0, 1.0, 30).double()
    series = sinh_excess_series(largest, torch.float32)
    assert series is not None
    z = 2 * eta.sinh()
    total = sinh_excess_sum(eta.expm1().float(), z.float(), series, torch.empty(30), torch.empty(30))
    torch.testing.assert_close(total.double(), exp_excess(2 * eta).sum(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dimension", [1, 3, 10])
def test_normal_points_have_the_moments_of_a_standard_normal(dimension: int) -> None:
    points = normal_points(dimension, 1024)
    assert points.shape == (1024, dimension)
    assert points.mean(0).abs().max() < 1e-12
    assert (points.mT @ points / 1024 - torch.eye(dimension)).abs().max() < 0.1
    probability = torch.special.expit(2 * points[:, :1] + 1).mean()
    exact = torch.special.expit(2 * torch.linspace(-8, 8, 20_001).double() + 1)
    weights = torch.exp(-torch.linspace(-8, 8, 20_001).double().square() / 2)
    assert float(probability) == pytest.approx(float((exact * weights).sum() / weights.sum()), abs=2e-3)


def both_above(one: float, other: float, correlation: float) -> float:
    """P(x < one, y < other) of standard normals that are correlated, by integration over x."""
    spread = (1 - correlation**2) ** 0.5
    return quad(lambda x: norm.pdf(x) * norm.cdf((other - correlation * x) / spread), -12, one)[0]


@pytest.mark.parametrize("correlation", [-0.9, -0.4, 0.0, 0.6, 0.99])
def test_both_above_against_an_integral(correlation: float) -> None:
    values = torch.tensor([-2.5, -1.0, 0.0, 0.7, 4.0], dtype=torch.float64)
    for one in values:
        for other in values:
            found = log_both_above(one, other, torch.tensor(correlation, dtype=torch.float64))
            assert float(found.exp()) == pytest.approx(both_above(float(one), float(other), correlation), abs=1e-6)


FAR = [(-30.0, -30.0, 0.0), (-27.0, -27.0, 0.5), (-40.0, 5.0, 0.3), (-300.0, -200.0, 0.6), (-30.0, -25.0, 0.9)]


@pytest.mark.parametrize(("one", "other", "correlation"), FAR)
def test_both_above_where_the_least_number_is_larger(one: float, other: float, correlation: float) -> None:
    """Against a sum of logarithms over x; its gradients are numbers too."""
    inputs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (one, other, correlation)]
    x = torch.linspace(-one, -one + 60, 1_000_001, dtype=torch.float64)
    spread = (1 - correlation**2) ** 0.5
    logs = torch.special.log_ndtr((other + correlation * x) / spread) - x.square() / 2 - math.log(2 * math.pi) / 2
    exact = torch.logsumexp(logs, 0) + math.log(60 / 1_000_000)
    found = log_both_above(*inputs)
    assert float(found.detach()) == pytest.approx(float(exact), rel=3e-5, abs=2e-3)
    assert all(bool(slope.isfinite()) for slope in torch.autograd.grad(found, inputs))
