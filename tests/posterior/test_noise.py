"""The two noises of the weight space against the law of x E^T for a dense Gaussian matrix E."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from abmll.posterior import Factors, Noise, WeightSpace

D_OUT, D_IN = 3, 4
FORMS = [(1, 0.0), (1, 0.4), (3, 0.0), (3, 0.4)]
Kind = Literal["local", "shared"]


def noise(kind: Kind, seed: int = 1, mask: Tensor | None = None) -> Noise:
    return Noise(kind, torch.Generator().manual_seed(seed), mask)


@pytest.fixture
def layer(make_factors):
    """layer(k, dtype): a single layer of shape D_OUT x D_IN."""

    def make(k: int = 1, dtype: torch.dtype = torch.float64) -> Factors:
        return make_factors(num_layers=1, d_out=D_OUT, d_in=D_IN, r=2, k=k, dtype=dtype).unbind()[0]

    return make


def tokens(num_tokens: int, generator: torch.Generator) -> Tensor:
    """(T, D_IN) float64, linearly dependent: the second token repeats the first, the third is zero."""
    x = torch.randn(num_tokens, D_IN, generator=generator, dtype=torch.float64)
    if num_tokens > 1:
        x[1] = x[0]
    if num_tokens > 2:
        x[2] = 0.0
    return x


def covariance(x: Tensor, sigma: Tensor, kind: Kind) -> Tensor:
    """(T D_OUT, T D_OUT): cov[(t, i), (u, j)] = [i = j] sum_l x_tl x_ul sigma_il^2, local: [t = u] of that."""
    by_channel = torch.einsum("tl,ul,il->itu", x, x, sigma.square())
    if kind == "local":
        by_channel = torch.diag_embed(by_channel.diagonal(dim1=1, dim2=2))
    return torch.einsum("itu,ij->tiuj", by_channel, torch.eye(D_OUT, dtype=x.dtype)).reshape(2 * [len(x) * D_OUT])


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("kind", ["local", "shared"])
@pytest.mark.parametrize("num_tokens", [1, 3, 6])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_mean_and_covariance_across_tokens_and_channels(
    delta, layer, dense_normal, generator, k, floor, kind, num_tokens, with_gradient
):
    """Within six standard errors of 20,000 samples; with gradients the shared noise takes another path."""
    factors, x, draws = layer(k), tokens(num_tokens, generator), 20_000
    space = WeightSpace(2.0, k, floor)
    stacked = x.expand(draws, *x.shape).clone().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        sample = (
            (delta(space, factors, stacked, noise(kind)) - delta(space, factors, stacked, None)).detach().flatten(1)
        )
    sigma = dense_normal(Factors(*(tensor[None] for tensor in factors)), 2.0, floor).stddev[0]
    expected = covariance(x, sigma, kind)
    variance = expected.diagonal()
    assert (sample.mean(0).abs() <= 6 * (variance / draws).sqrt() + 1e-9).all()
    standard_error = ((variance[:, None] * variance + expected.square()) / draws).sqrt()
    assert ((sample.mT @ sample / draws - expected).abs() <= 6 * standard_error + 1e-9).all()


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("num_tokens", [3, 6])
def test_shared_noise_is_linear_in_the_tokens_of_an_example(delta, layer, generator, k, floor, num_tokens):
    """One weight sample per example: dependent tokens get exactly dependent noise, in single precision too."""
    factors, space = layer(k, torch.float32), WeightSpace(2.0, k, floor)
    x = torch.randn(5, num_tokens, D_IN, generator=generator)
    x[:, 2] = x[:, 0] - 2 * x[:, 1]
    y = delta(space, factors, x, noise("shared")) - delta(space, factors, x, None)
    torch.testing.assert_close(y[:, 2], y[:, 0] - 2 * y[:, 1], rtol=1e-4, atol=1e-4)
    assert y[:, :2].abs().min() > 0
    assert not torch.allclose(y[0, 0] / x[0, 0].norm(), y[1, 0] / x[1, 0].norm())


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("kind", ["local", "shared"])
def test_examples_are_independent_and_seeds_repeat(delta, layer, k, floor, kind):
    factors, space = layer(k), WeightSpace(2.0, k, floor)
    x = torch.ones(2, 3, D_IN, dtype=torch.float64)
    first, again, other = (delta(space, factors, x, noise(kind, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("num_tokens", [3, 6])
def test_padding_gets_no_shared_noise_and_does_not_reach_real_tokens(delta, layer, generator, k, num_tokens):
    factors, space = layer(k), WeightSpace(2.0, k)
    x = torch.randn(2, num_tokens, D_IN, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, num_tokens, dtype=torch.bool)
    mask[0, 2:] = False
    other = x.masked_fill(~mask[..., None], 7.0)
    y, y_other = (delta(space, factors, tensor, noise("shared", mask=mask)) for tensor in (x, other))
    torch.testing.assert_close(y[mask], y_other[mask])
    torch.testing.assert_close(y_other[~mask], delta(space, factors, other, None)[~mask])


@pytest.mark.parametrize(("k", "floor", "kind", "num_tokens"), [
    *((k, floor, "local", 3) for k, floor in FORMS),
    *((k, floor, "shared", 3) for k, floor in FORMS[1:]),
    (1, 0.0, "shared", 6),
])  # fmt: skip
def test_pathwise_gradients_by_finite_differences(delta, layer, generator, k, floor, kind, num_tokens):
    x = torch.randn(2, num_tokens, D_IN, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [tensor.clone().requires_grad_() for tensor in layer(k)]
    space = WeightSpace(2.0, k, floor)
    assert torch.autograd.gradcheck(lambda x, *f: delta(space, Factors(*f), x, noise(kind)), (x, *leaves))


def test_gradients_of_rank_one_shared_noise_are_unbiased(delta, layer, generator):
    """Against the gradients of E[sum_i exp(c . y_i)] = sum_i exp(c' V_i c / 2), within six standard errors."""
    factors, batches, draws, c = layer(), 40, 1_000, torch.tensor([0.5, -0.3, 0.4], dtype=torch.float64)
    x = torch.randn(3, D_IN, generator=generator, dtype=torch.float64)
    x[2] = x[0] + x[1]  # a singular Gram matrix
    leaves = [x.requires_grad_(), *(tensor.clone().requires_grad_() for tensor in factors[2:])]
    x, scale_A, scale_B = leaves
    sigma = (scale_B + scale_A).exp()
    variance = torch.einsum("t,tl,il->il", c, x, sigma).square().sum(dim=1)
    expected = torch.autograd.grad(torch.exp(variance / 2).sum(), leaves)

    no_mean = Factors(torch.zeros_like(factors.mean_A), torch.zeros_like(factors.mean_B), scale_A, scale_B)
    source = noise("shared")
    samples = []
    for _ in range(batches):
        y = delta(WeightSpace(2.0), no_mean, x.expand(draws, -1, -1), source)
        samples.append(torch.autograd.grad(torch.exp(torch.einsum("t,nti->ni", c, y)).sum() / draws, leaves))
    for gradients, oracle in zip(zip(*samples, strict=True), expected, strict=True):
        stacked = torch.stack(gradients)
        standard_error = stacked.std(dim=0) / batches**0.5
        assert ((stacked.mean(dim=0) - oracle).abs() <= 6 * standard_error).all()
        assert (standard_error < 0.1 * oracle.abs().max()).all()


@pytest.mark.parametrize(("k", "floor"), FORMS)
@pytest.mark.parametrize("kind", ["local", "shared"])
def test_a_zero_token_and_repeated_tokens_have_finite_gradients(delta, layer, generator, k, floor, kind):
    x = tokens(3, generator).float()[None].requires_grad_()
    leaves = [tensor.clone().requires_grad_() for tensor in layer(k, torch.float32)]
    delta(WeightSpace(2.0, k, floor), Factors(*leaves), x, noise(kind)).square().sum().backward()
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in (x, *leaves))


def test_half_precision_input_gives_single_precision_noise(delta, layer):
    x = torch.ones(1, 2, D_IN, dtype=torch.bfloat16)
    assert delta(WeightSpace(2.0), layer(1, torch.float32), x, noise("shared")).dtype == torch.float32
