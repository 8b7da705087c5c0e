"""Weight samples as plain low-rank updates: mean and variance of every weight against the dense Gaussian."""

from typing import Any

import pytest
import torch

from abmll.common.errors import ConfigError
from abmll.posterior import OutputSpace, WeightSpace
from abmll.posterior.bernoulli import DropoutSpace
from abmll.posterior.factor import FactorSpace
from abmll.posterior.space import Space
from abmll.posterior.stacks import Factors

SAMPLES = 40_000
MOST = 5.0  # standard errors: of 140 numbers, one is beyond it in about ten thousand seeds


def moments(space: Space, factors: Factors, directions: int, generator: torch.Generator) -> tuple[Any, Any, Any]:
    """Mean, variance and covariance with the first weight of every weight, over many samples."""
    many = Factors(*(tensor.repeat(SAMPLES, 1, 1) for tensor in factors))
    left, right = space.plain_sample(many, directions, generator)
    updates = (left @ right).unflatten(0, (SAMPLES, len(factors.mean_A)))
    centred = updates - updates.mean(0)
    first = centred[..., :1, :1]
    return updates.mean(0), updates.var(0), (centred * first).mean(0)


@pytest.mark.parametrize(("k", "floor", "directions"), [(1, 0.0, 5), (3, 0.0, 4), (2, 0.3, 4)])
def test_weight_samples_have_the_gaussians_mean_and_variance(
    make_factors, dense_normal, generator, k, floor, directions
):
    space, factors = WeightSpace(2.0, k, floor), make_factors(k=k)
    components = space.sample_components
    assert components == k + (floor > 0)
    left, right = space.plain_sample(factors, directions, generator)
    assert left.shape == (2, 5, 3 + components * directions)
    assert right.shape == (2, 3 + components * directions, 7)

    normal = dense_normal(factors, 2.0, floor)
    mean, variance, covariance = moments(space, factors, directions, generator)
    error = normal.stddev / SAMPLES**0.5
    assert ((mean - normal.mean).abs() / error).max() < MOST
    kurtosis = 3 + 6 / directions  # of a sum of so many products of two normal numbers
    error = normal.variance * ((kurtosis - 1) / SAMPLES) ** 0.5
    assert ((variance - normal.variance).abs() / error).max() < MOST
    # Other weights are uncorrelated with the first; E[(z z')^2] is at most E[z^4] (Cauchy and Schwarz).
    scaled = covariance / (normal.stddev * normal.stddev[:, :1, :1])
    scaled[:, 0, 0] = 0
    assert scaled.abs().max() < MOST * (kurtosis / SAMPLES) ** 0.5


def test_the_noise_is_in_rank_m_per_component(make_factors, generator):
    factors = make_factors(k=1)
    left, right = WeightSpace(2.0).plain_sample(factors, 2, generator)
    noise = left @ right - 2.0 * factors.mean_B @ factors.mean_A
    assert torch.linalg.matrix_rank(noise).tolist() == [2, 2]


@pytest.mark.parametrize("random_B", [True, False])
def test_factor_samples_are_draws_of_the_factors(make_factors, generator, random_B):
    space = FactorSpace(2.0, random_B=random_B)
    factors = make_factors(k=3)
    factors = factors if random_B else factors._replace(scale_B=factors.scale_B[..., :0])
    assert space.sample_components == 0
    left, right = space.plain_sample(factors, 0, generator)
    assert (left.shape, right.shape) == ((2, 5, 3), (2, 3, 7))
    mean, variance, _ = moments(space, factors, 0, generator)
    b, a = 2.0 * factors.mean_B, factors.mean_A
    var_b = (2.0 * factors.scale_B.exp()).square() if random_B else torch.zeros_like(b)
    var_a = factors.scale_A.exp().square()
    # Of a sum of products of independent numbers: b^2 var a + var b a^2 + var b var a.
    expected = b.square() @ var_a + var_b @ (a.square() + var_a)
    assert ((mean - b @ a).abs() / (expected / SAMPLES).sqrt()).max() < MOST
    torch.testing.assert_close(variance, expected, rtol=0.1, atol=0)


def test_a_dropout_sample_drops_inputs(make_factors, generator):
    factors = make_factors(k=3)
    factors = factors._replace(scale_A=factors.scale_A[:, :0], scale_B=factors.scale_B[..., :0])
    space = DropoutSpace(2.0, 0.5)
    left, right = space.plain_sample(factors, 0, generator)
    kept = (right / factors.mean_A)[:, 0]
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(left @ right, 2.0 * factors.mean_B @ factors.mean_A * kept[:, None])


def test_noise_on_outputs_has_no_samples_of_the_weights(make_factors, generator):
    assert OutputSpace(2.0).sample_components is None
    with pytest.raises(ConfigError, match="OutputSpace has no samples of the weights"):
        OutputSpace(2.0).plain_sample(make_factors(k=3), 4, generator)
