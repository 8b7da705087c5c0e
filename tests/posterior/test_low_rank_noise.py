"""Noise in a few random directions: exactly normal at every token, correlated between tokens as its kind says."""

import pytest
import torch
from torch import Tensor

from abmll.posterior import Factors, Noise, OutputSpace, WeightSpace

D_IN, D_OUT, DRAWS = 40, 3, 1_000
FORMS = [(1, 0.0), (3, 0.0), (1, 0.2)]


@pytest.fixture
def layer(make_factors):
    return lambda k: make_factors(num_layers=1, d_out=D_OUT, d_in=D_IN, r=2, k=k).unbind()[0]


def samples(delta, space, layer: Factors, x: Tensor, kind, rank: int, draws: int = DRAWS) -> Tensor:
    """(draws, T, D_OUT) of noise for the tokens x (T, D_IN), each drawn on its own."""
    generator = torch.Generator().manual_seed(1)
    mean = delta(space, layer, x[None], None)
    return torch.cat([delta(space, layer, x[None], Noise(kind, generator, rank=rank)) - mean for _ in range(draws)])


def correlated_tokens(generator: torch.Generator) -> Tensor:
    """Three tokens, two of which are alike."""
    x = torch.randn(3, D_IN, generator=generator, dtype=torch.float64)
    x[1] = x[0] + 0.5 * x[1]
    return x


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("kind", ["local", "shared"])
def test_every_token_s_noise_is_normal_with_the_exact_variance(delta, layer, dense_normal, generator, k, floor, kind):
    """Variance within six standard errors, fourth moment that of a normal number: three times its square."""
    factors, x = layer(k), correlated_tokens(generator)
    noise = samples(delta, WeightSpace(2.0, k, floor), factors, x, kind, rank=2)
    sigma = dense_normal(Factors(*(tensor[None] for tensor in factors)), 2.0, floor).stddev[0]
    z = noise / (x.square() @ sigma.square().mT).sqrt()
    assert (z.mean(0).abs() < 6 / DRAWS**0.5).all()
    assert ((z.square().mean(0) - 1).abs() < 6 * (2 / DRAWS) ** 0.5).all()
    assert ((z**4).mean(0) - 3).abs().max() < 6 * (96 / DRAWS) ** 0.5


@pytest.mark.parametrize(("k", "floor"), FORMS)
def test_local_noise_of_two_tokens_or_channels_is_uncorrelated(delta, layer, generator, k, floor):
    x = correlated_tokens(generator)
    z = samples(delta, WeightSpace(2.0, k, floor), layer(k), x, "local", rank=2).flatten(1)
    z = (z - z.mean(0)) / z.std(0)
    between = z.mT @ z / DRAWS - torch.eye(z.shape[1])
    assert between.abs().max() < 6 / DRAWS**0.5


@pytest.mark.parametrize(("k", "floor"), FORMS)
def test_shared_noise_nears_the_correlation_of_one_weight_sample(delta, layer, dense_normal, generator, k, floor):
    """At rank 1 two tokens' noise is equal up to its sign, at rank 32 the correlation is nearly the exact one."""
    factors, x = layer(k), correlated_tokens(generator)
    sigma = dense_normal(Factors(*(tensor[None] for tensor in factors)), 2.0, floor).stddev[0]
    exact = torch.einsum("tj,uj,ij->itu", x, x, sigma.square())
    scale = exact.diagonal(dim1=1, dim2=2).sqrt()
    exact = exact / (scale[:, :, None] * scale[:, None, :])
    errors = []
    for rank in (1, 32):
        z = samples(delta, WeightSpace(2.0, k, floor), factors, x, "shared", rank) / scale.mT
        errors.append(float((torch.einsum("nti,nui->itu", z, z) / len(z) - exact).abs().max()))
    assert errors[1] < 0.15 < errors[0]


def test_a_shared_sample_is_one_function_of_the_token(delta, layer, generator):
    """Whatever stands beside it, a token meets the same function; rank 0 redraws for every batch shape."""
    factors, space, x = layer(1), WeightSpace(2.0), torch.randn(1, 5, D_IN, generator=generator, dtype=torch.float64)

    def sample(tokens: Tensor) -> Tensor:
        return delta(space, factors, tokens, Noise("shared", torch.Generator().manual_seed(3), rank=4))

    torch.testing.assert_close(sample(x)[:, 2:], sample(x[:, 2:]))
    torch.testing.assert_close(sample(x)[:, :1], sample(x[:, :1]))


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("kind", ["local", "shared"])
def test_pathwise_gradients_by_finite_differences(delta, layer, generator, k, floor, kind):
    x = torch.randn(2, 3, D_IN, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [tensor.clone().requires_grad_() for tensor in layer(k)]
    space = WeightSpace(2.0, k, floor)

    def sample(x: Tensor, *factors: Tensor) -> Tensor:
        return delta(space, Factors(*factors), x, Noise(kind, torch.Generator().manual_seed(5), rank=2))

    assert torch.autograd.gradcheck(sample, (x, *leaves))


def test_second_derivatives_by_finite_differences(delta, layer, generator):
    """A rule that learns through its inner steps needs them."""
    x = torch.randn(1, 2, D_IN, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [tensor.clone().requires_grad_() for tensor in layer(1)]

    def sample(x: Tensor, *factors: Tensor) -> Tensor:
        noise = Noise("local", torch.Generator().manual_seed(5), rank=2)
        return delta(WeightSpace(2.0), Factors(*factors), x, noise).sum()

    assert torch.autograd.gradgradcheck(sample, (x, *leaves))


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("kind", ["local", "shared"])
def test_a_zero_token_has_no_noise_and_finite_gradients(delta, layer, k, floor, kind):
    x = torch.zeros(1, 2, D_IN, dtype=torch.float64)
    x[0, 1] = 1.0
    x.requires_grad_()
    leaves = [tensor.clone().requires_grad_() for tensor in layer(k)]
    noise = Noise(kind, torch.Generator().manual_seed(5), rank=2)
    y = delta(WeightSpace(2.0, k, floor), Factors(*leaves), x, noise)
    assert y[0, 0].abs().max() < 1e-12
    y.square().sum().backward()
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in (x, *leaves))


def test_output_space_noise_is_normal_with_the_variance_of_its_input(delta, generator):
    space = OutputSpace(2.0, -1.0)
    layer = space.init(1, D_OUT, D_IN, 2, generator).unbind()[0]
    layer = layer._replace(scale_B=0.3 * torch.randn(D_OUT, 2, generator=generator))
    x = torch.randn(3, D_IN, generator=generator)
    z = samples(delta, space, layer, x, "local", rank=2)
    z = z / torch.exp(0.5 * 2.0 * x @ layer.scale_A.mT @ layer.scale_B.mT - 1.0)
    between = z.flatten(1).mT @ z.flatten(1) / DRAWS
    assert (between - torch.eye(3 * D_OUT)).abs().max() < 6 * (2 / DRAWS) ** 0.5
