"""The output space against torch.distributions on every unpadded token and channel."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll.common.errors import ConfigError
from abmll.posterior import Factors, Noise, OutputSpace, Prior

SPACE = OutputSpace(scaling=2.0, init_log_sigma=-1.0)
PRIOR = Prior(std=0.7, gamma_shape=2.5, gamma_rate=0.3)


def dense(layer: Factors, x: Tensor) -> Normal:
    log_variance = 2.0 * x @ layer.scale_A.mT @ layer.scale_B.mT - 2.0
    return Normal(2.0 * x @ layer.mean_A.mT @ layer.mean_B.mT, torch.exp(log_variance / 2))


def read(phi: Factors, theta: Factors, x: Tensor) -> tuple[Factors, Factors, Tensor]:
    """Both layers as stacks of one, and the coefficients (1, n, c) that an update without noise leaves of x."""
    one, other = (Factors(*(tensor[None] for tensor in layer)) for layer in (phi, theta))
    [recorder] = SPACE.recorders(one, other, noise=None)
    return one, other, recorder.coefficients(x).flatten(0, -2)[None]


def divergence(phi: Factors, theta: Factors, x: Tensor, counts: Tensor | None = None) -> Tensor:
    return SPACE.activation_kl(*read(phi, theta, x), counts)


def negative_log_prior(theta: Factors, x: Tensor, counts: Tensor | None = None) -> Tensor:
    _, stack, coefficients = read(theta, theta, x)
    return SPACE.activation_negative_log_prior(stack, PRIOR, coefficients, counts)


@pytest.fixture
def layers(make_factors) -> list[Factors]:
    return make_factors(num_layers=2, k=3).unbind()


@pytest.fixture
def x(generator) -> Tensor:
    return 0.3 * torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)


@pytest.fixture
def counts() -> Tensor:
    return torch.tensor([3, 1, 2, 1, 1, 1, 1, 1], dtype=torch.float64)


def test_start_is_a_zero_mean_and_one_variance_for_every_input(delta, generator):
    factors = OutputSpace(2.0, -10.0).init(2, 5, 16, 3, generator)
    assert [tuple(tensor.shape) for tensor in factors] == [(2, 3, 16), (2, 5, 3), (2, 3, 16), (2, 5, 3)]
    assert all(tensor.dtype == torch.float32 for tensor in factors)
    assert not torch.equal(factors.mean_A, factors.scale_A)
    layer, x = factors.unbind()[0], torch.randn(400, 50, 16, generator=generator)
    assert torch.count_nonzero(delta(OutputSpace(2.0, -10.0), layer, x, None)) == 0
    sample = delta(OutputSpace(2.0, -10.0), layer, x, Noise("local", generator))
    assert math.isclose(sample.std().item(), math.exp(-10), rel_tol=0.02)
    assert OutputSpace(2.0, -10.0).log_sigma_mean(factors).item() == -10.0


def test_kl_equals_torch_distributions(layers, x, counts):
    phi, theta = layers
    expected = kl_divergence(dense(phi, x), dense(theta, x))
    torch.testing.assert_close(divergence(phi, theta, x), expected.sum(), rtol=1e-11, atol=0.0)
    weighed = (expected.flatten(0, 1).sum(-1) * counts).sum()
    torch.testing.assert_close(divergence(phi, theta, x, counts), weighed, rtol=1e-11, atol=0.0)
    assert divergence(theta, theta, x).item() == 0.0


def test_a_stack_is_the_sum_of_its_layers(make_factors, x, counts, monkeypatch):
    """However it is cut into tiles."""
    phi, theta = make_factors(num_layers=3, k=3), make_factors(num_layers=3, k=3)
    inputs = [x, x + 0.1, x - 0.2]
    layers = list(zip(phi.unbind(), theta.unbind(), inputs, strict=True))
    alone = sum(divergence(one, other, tokens, counts) for one, other, tokens in layers)
    alone_prior = sum(negative_log_prior(other, tokens, counts) for _, other, tokens in layers)
    coefficients = torch.cat([read(*layer)[2] for layer in layers])
    for elements in (1, 8, 60, 10**6):
        monkeypatch.setattr("abmll.posterior.tiles.tile_elements", lambda device, size=elements: size)
        together = SPACE.activation_kl(phi, theta, coefficients, counts)
        torch.testing.assert_close(together, alone, rtol=1e-11, atol=0.0)
    prior = SPACE.activation_negative_log_prior(theta, PRIOR, coefficients, counts)
    torch.testing.assert_close(prior, alone_prior, rtol=1e-11, atol=0.0)


def test_prior_equals_torch_distributions(layers, x, counts):
    theta = layers[0]
    normal = dense(theta, x)
    zero, std, shape, rate = (torch.tensor(value, dtype=torch.float64) for value in (0.0, 0.7, 2.5, 0.3))
    log_prior = Normal(zero, std).log_prob(normal.mean) + Gamma(shape, rate).log_prob(normal.variance.reciprocal())
    torch.testing.assert_close(negative_log_prior(theta, x), -log_prior.sum(), rtol=1e-11, atol=0.0)
    weighed = -(log_prior.flatten(0, 1).sum(-1) * counts).sum()
    torch.testing.assert_close(negative_log_prior(theta, x, counts), weighed, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("size", [0.001, 1.0])
def test_finite_differences(delta, make_factors, x, counts, size):
    """Near theta, where a power series is used, and far from it."""
    first, second = make_factors(num_layers=2, d_out=2, k=3).unbind()
    first = Factors(*(theta + size * (phi - theta) for phi, theta in zip(first, second, strict=True)))
    leaves = [x[:, :3].clone().requires_grad_(), *(tensor.clone().requires_grad_() for tensor in (*first, *second))]

    def kl(x: Tensor, *tensors: Tensor) -> Tensor:
        return divergence(Factors(*tensors[:4]), Factors(*tensors[4:]), x, counts[:6])

    def prior(x: Tensor, *tensors: Tensor) -> Tensor:
        return negative_log_prior(Factors(*tensors[:4]), x, counts[:6])

    def sample(x: Tensor, *tensors: Tensor) -> Tensor:
        return delta(SPACE, Factors(*tensors[:4]), x, Noise("local", torch.Generator().manual_seed(0)))

    assert torch.autograd.gradcheck(kl, leaves)
    assert torch.autograd.gradcheck(prior, leaves[:5])
    assert torch.autograd.gradcheck(sample, leaves[:5])


def test_single_precision_survives_near_equality(make_factors, generator, x):
    theta = make_factors(num_layers=1, k=3, dtype=torch.float32).unbind()[0]
    phi = theta.clone_detached()
    for tensor in phi:
        tensor.add_(1e-6 * torch.randn(tensor.shape, generator=generator))
    x = x.float()
    exact_phi, exact_theta = (Factors(*(tensor.double() for tensor in layer)) for layer in (phi, theta))
    ours, normals = (
        divergence(phi, theta, x),
        (dense(exact_phi, x.double()), dense(exact_theta, x.double())),
    )
    d = 2 * (normals[0].stddev.log() - normals[1].stddev.log())
    distance = (normals[0].mean - normals[1].mean) / normals[1].stddev
    expected = 0.5 * (d.square() / 2 + d**3 / 6 + distance.square()).sum()  # the rest is of order d^4
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_noise_has_the_right_spread_and_shares_its_numbers_over_tokens(delta, layers, x, generator, kind):
    layer, stacked = layers[0], x[:1].expand(20_000, -1, -1)
    normal = dense(layer, x[:1])
    z = (delta(SPACE, layer, stacked, Noise(kind, generator)) - normal.mean) / normal.stddev
    torch.testing.assert_close(delta(SPACE, layer, x[:1], None), normal.mean)
    correlation = torch.einsum("nti,nuj->tiuj", z, z) / len(z)
    tokens = torch.ones(4, 4) if kind == "shared" else torch.eye(4)
    expected = torch.einsum("tu,ij->tiuj", tokens.double(), torch.eye(5, dtype=torch.float64))
    assert (z.mean(0).abs() < 6 / 20_000**0.5).all()
    assert ((correlation - expected).abs() < 6 * (2 / 20_000) ** 0.5).all()


def test_functions_of_the_factors_alone_are_refused(make_factors):
    factors = make_factors(k=3)
    assert SPACE.per_activation
    with pytest.raises(ConfigError, match="no divergence between factors"):
        SPACE.kl(factors, factors)
    with pytest.raises(ConfigError, match="no prior on factors"):
        SPACE.negative_log_prior(factors, PRIOR)


def test_an_infinite_start_is_refused():
    with pytest.raises(ConfigError, match="init_log_sigma=-inf"):
        OutputSpace(2.0, float("-inf"))


def test_a_start_whose_variance_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="give an init_log_sigma between -40 and 40"):
        OutputSpace(2.0, -41.0)
