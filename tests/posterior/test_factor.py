"""Gaussian factors: closed forms against torch.distributions, samples against what their moments must be."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll.common.errors import ConfigError
from abmll.posterior import Factors, Noise, Prior
from abmll.posterior.factor import FactorSpace

SCALING = 1.7
SPACES = [FactorSpace(SCALING), FactorSpace(SCALING, random_B=False)]
DRAWS = 3000


@pytest.fixture
def draw_factors(generator: torch.Generator) -> Callable[..., Factors]:
    """draw_factors(space, L): means of order 1, log standard deviations around -1, in float64."""

    def make(space: FactorSpace, num_layers: int = 2, d_out: int = 4, d_in: int = 5, r: int = 3) -> Factors:
        fresh = space.init(num_layers, d_out, d_in, r, generator)
        sizes = [(one.shape, 0.4, 0.0) for one in fresh[:2]] + [(one.shape, 0.3, -1.0) for one in fresh[2:]]
        return Factors(
            *(
                spread * torch.randn(shape, generator=generator, dtype=torch.float64) + middle
                for shape, spread, middle in sizes
            )
        )

    return make


def normals(space: FactorSpace, factors: Factors) -> list[Normal]:
    """The distributions of A, and of B where it has one."""
    pairs = [(factors.mean_A, factors.scale_A)] + [(factors.mean_B, factors.scale_B)] * space.random_B
    return [Normal(mean, log_std.exp()) for mean, log_std in pairs]


@pytest.mark.parametrize("space", SPACES)
def test_divergence_is_torch_s(space: FactorSpace, draw_factors: Callable[..., Factors]) -> None:
    phi, theta = draw_factors(space), draw_factors(space)
    pairs = zip(normals(space, phi), normals(space, theta), strict=True)
    expected = torch.stack([kl_divergence(*pair).sum() for pair in pairs]).sum()
    torch.testing.assert_close(space.kl(phi, theta), expected, rtol=1e-12, atol=0)
    assert space.kl(phi, phi) == 0


def test_divergence_keeps_its_digits_near_equality(draw_factors: Callable[..., Factors]) -> None:
    """In float32, for a phi a millionth away, where the textbook formula has lost all of its digits."""
    space = SPACES[0]
    theta = Factors(*(tensor.float() for tensor in draw_factors(space)))
    phi = Factors(*(tensor + 1e-6 for tensor in theta))
    double = [Factors(*(tensor.double() for tensor in one)) for one in (phi, theta)]
    torch.testing.assert_close(space.kl(phi, theta).double(), space.kl(*double), rtol=1e-5, atol=0)


@pytest.mark.parametrize("space", SPACES)
def test_prior_is_torch_s(space: FactorSpace, draw_factors: Callable[..., Factors]) -> None:
    theta, prior = draw_factors(space), Prior(0.7, 1.4, 0.3)
    expected = -sum(Normal(0.0, prior.std).log_prob(mean).sum() for mean in (theta.mean_A, theta.mean_B))
    for one in normals(space, theta):
        expected -= Gamma(prior.gamma_shape, prior.gamma_rate).log_prob(one.scale**-2).sum()
    torch.testing.assert_close(space.negative_log_prior(theta, prior), expected, rtol=1e-5, atol=0)


def sampled(space: FactorSpace, layer: Factors, x: Tensor, kind: str) -> Tensor:
    """(DRAWS, T, d_out) noise of one layer's output: a stack of so many equal layers draws so many samples."""
    stack = Factors(*(tensor.expand(DRAWS, *tensor.shape) for tensor in layer))
    noise = Noise(kind, torch.Generator().manual_seed(1))  # pyright: ignore[reportArgumentType]
    updates, alone = space.layers(stack, noise), Factors(*(tensor[None] for tensor in layer))
    return torch.stack([update(x[None])[0] for update in updates]) - space.layers(alone, None)[0](x)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["shared", "local"])
def test_samples_have_the_right_mean_and_covariance(
    space: FactorSpace, kind: str, draw_factors: Callable[..., Factors], generator: torch.Generator
) -> None:
    """Of two tokens' noise, from the moments of independent A and B; local noise leaves the tokens uncorrelated."""
    layer = draw_factors(space, 1).unbind()[0]
    x = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    noise = sampled(space, layer, x, kind)
    covariance = torch.einsum("sti,suj->tiuj", noise, noise) / DRAWS

    hidden = x @ layer.mean_A.T
    cross = torch.einsum("tj,uj,kj->tuk", x, x, (2 * layer.scale_A).exp())  # of A x, between tokens t and u
    expected = torch.einsum("ik,jk,tuk->tiuj", layer.mean_B, layer.mean_B, cross)
    if space.random_B:
        second = torch.einsum("tk,uk->tuk", hidden, hidden) + cross
        expected = expected + torch.einsum("ik,tuk,ij->tiuj", (2 * layer.scale_B).exp(), second, torch.eye(4).double())
    expected = SCALING**2 * expected
    if kind == "local":
        expected = expected * torch.eye(2, dtype=torch.float64)[:, None, :, None]
    largest = float(expected.abs().max())
    torch.testing.assert_close(noise.mean(0), torch.zeros_like(noise[0]), rtol=0, atol=4 * math.sqrt(largest / DRAWS))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.12 * largest)


def test_flipout_flips_inputs_and_outputs(draw_factors: Callable[..., Factors]) -> None:
    """Through B = 1, tokens of one input meet the same column of E up to signs of the outputs' own; tokens of all
    inputs meet differently signed sums of its columns, which differ in size."""
    space = FactorSpace(1.0, random_B=False)
    factors = draw_factors(space, 1, d_out=3)
    factors = factors._replace(mean_A=torch.zeros_like(factors.mean_A), mean_B=torch.eye(3).double()[None])
    [update] = space.layers(factors, Noise("local", torch.Generator().manual_seed(0)))
    single = torch.zeros(1, 20, 5, dtype=torch.float64)
    single[..., 2] = 1.0
    [noise] = update(single)
    torch.testing.assert_close(noise.abs(), noise[:1].abs().expand_as(noise))
    assert len({tuple(row.tolist()) for row in noise.sign()}) > 2
    [noise] = update(torch.ones(1, 20, 5, dtype=torch.float64))
    assert len({round(float(size), 9) for size in noise[:, 0].abs()}) > 2


@pytest.mark.parametrize("space", SPACES)
def test_a_shared_sample_is_one_function(space: FactorSpace, draw_factors: Callable[..., Factors]) -> None:
    """The same for every row, token and call; local noise is not."""
    factors, x = draw_factors(space), torch.ones(3, 2, 5, dtype=torch.float64)
    for kind, same in (("shared", True), ("local", False)):
        noise = Noise(kind, torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
        update = space.layers(factors, noise)[1]
        outputs = torch.cat([update(x), update(x)]).flatten(0, 1)
        assert torch.allclose(outputs, outputs[:1].expand_as(outputs)) == same


@pytest.mark.parametrize("space", SPACES)
def test_linear_covariance_is_the_jacobian_s(
    space: FactorSpace, draw_factors: Callable[..., Factors], generator: torch.Generator
) -> None:
    layer = draw_factors(space, 1).unbind()[0]
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)

    def functions(mean_A: Tensor, mean_B: Tensor) -> Tensor:
        return torch.einsum("ndti,nti->nd", gradients, SCALING * x @ mean_A.T @ mean_B.T)

    by_A, by_B = torch.autograd.functional.jacobian(functions, (layer.mean_A, layer.mean_B))
    expected = torch.einsum("ndkj,kj,nekj->nde", by_A, (2 * layer.scale_A).exp(), by_A)
    if space.random_B:
        expected = expected + torch.einsum("ndik,ik,neik->nde", by_B, (2 * layer.scale_B).exp(), by_B)
    torch.testing.assert_close(space.linear_covariance(layer, x, gradients), expected)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["shared", "local"])
def test_every_random_factor_has_a_gradient(
    space: FactorSpace, kind: str, draw_factors: Callable[..., Factors]
) -> None:
    factors = draw_factors(space).requires_grad_()
    noise = Noise(kind, torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
    outputs = [update(torch.ones(1, 2, 5)) for update in space.layers(factors, noise)]
    torch.stack(outputs).square().sum().backward()
    for name, tensor in factors._asdict().items():
        if tensor.numel():
            assert tensor.grad is not None, name
            assert bool((tensor.grad != 0).all()), name


def test_start_and_what_is_watched(generator: torch.Generator) -> None:
    for random_B, width in ((True, 3), (False, 0)):
        space = FactorSpace(SCALING, init_log_sigma=-2.5, random_B=random_B)
        factors = space.init(2, 4, 5, 3, generator)
        assert factors.scale_B.shape == (2, 4, width)
        assert not factors.mean_B.any()
        assert factors.mean_A.abs().max() <= 1 / math.sqrt(5)
        assert float(space.log_sigma_mean(factors)) == -2.5
    with pytest.raises(ConfigError, match="init_log_sigma=inf"):
        FactorSpace(SCALING, init_log_sigma=math.inf)
