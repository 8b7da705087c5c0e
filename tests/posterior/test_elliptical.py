"""Chains of the exact posterior, against numerical integration and a Metropolis sampler."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from abmll.posterior import elliptical
from abmll.posterior.elliptical import refine
from abmll.posterior.latent import Latent, log_likelihood, root
from abmll.posterior.mode import find_mode
from abmll.posterior.paths import Paths, sample

CHAINS = 3000
Quadrature = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN = torch.tensor([1.0, -0.6, 2.0], dtype=torch.float64)[:, None]
ANSWERS = torch.tensor([1, 0, 1])
DESIGN = 1.5 * normal(1, 3, 2, 1)
LATENT = Latent(normal(1, 3, 2, seed=1), 4 * (HIDDEN @ HIDDEN.mT)[None], DESIGN)


def chains(latent: Latent, answers: Tensor, lowest: float, seed: int = 0) -> tuple[Latent, Paths, Paths]:
    """``CHAINS`` chains of one hypothesis: their prior, where they start, where they end."""
    generator, index = torch.Generator().manual_seed(seed), torch.zeros(CHAINS, dtype=torch.long)
    start = sample(latent, find_mode(latent, answers), index, generator)
    rows = latent.pick(index)
    end = refine(latent, index, answers, start, torch.full_like(start.weights, lowest), generator, reads=(60,))
    return rows, start, end


def scores(rows: Latent, paths: Paths) -> Tensor:
    """f at the examples, as the chains have it: with the little on the kernel's diagonal."""
    factor = root(rows.kernel)
    return rows.scores(factor @ (factor.mT @ paths.dual), paths.weights)


def lead(scores: Tensor) -> Tensor:
    """By how much the second option leads, which is all that two options say: (P, N)."""
    return scores[..., 1] - scores[..., 0]


def integrated(quadrature: Quadrature, lowest: float) -> tuple[Tensor, Tensor]:
    """The exact mean and variance of the lead, (N,): over g, which is a line here, and over w from ``lowest`` on."""
    contrast = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
    line, logs = quadrature((2 * HIDDEN * contrast)[None], 80)
    weight = torch.linspace(max(lowest, -8.0), 8.0, 2001, dtype=torch.float64)
    both = LATENT.offset[0] + line[:, None] + weight[:, None, None] * DESIGN[0, :, :, 0]
    joint = logs[:, None] - weight.square() / 2 + log_likelihood(both, ANSWERS)
    ends = torch.ones_like(weight)
    ends[[0, -1]] = 0.5
    density = torch.softmax((joint + ends.log()).flatten(), 0)
    leads = lead(both).flatten(0, 1)
    mean = density @ leads
    return mean, density @ (leads - mean).square()


def assert_moments(found: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Samples (P, N) within four and a half standard errors."""
    error = (found.var(0) / len(found)).sqrt()
    assert bool(((found.mean(0) - mean).abs() < 4.5 * error).all())
    squares = (found - found.mean(0)).square()
    error = (squares.var(0) / len(found)).sqrt()
    assert bool(((squares.mean(0) - variance).abs() < 4.5 * error).all())


def test_chains_have_the_exact_mean_and_variance(quadrature: Quadrature) -> None:
    rows, start, end = chains(LATENT, ANSWERS, -torch.inf)
    mean, variance = integrated(quadrature, -torch.inf)
    assert_moments(lead(scores(rows, end)), mean, variance)
    before = lead(scores(rows, start)).mean(0)
    assert float((before - mean).abs().max()) > 0.3  # the Gaussian at the mode has not


def test_weights_that_are_cut_have_the_exact_mean_and_variance(quadrature: Quadrature) -> None:
    rows, _, end = chains(LATENT, ANSWERS, -0.5)
    mean, variance = integrated(quadrature, -0.5)
    assert_moments(lead(scores(rows, end)), mean, variance)
    assert float((mean - integrated(quadrature, -torch.inf)[0]).abs().max()) > 0.1  # the cut matters


def test_chains_of_float32_have_the_exact_mean_and_variance(
    quadrature: Quadrature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elliptical, "LARGE", 0)
    rows, start, end = chains(LATENT, ANSWERS, -math.inf)
    assert end.dual.dtype == end.weights.dtype == torch.float64
    monkeypatch.undo()
    assert not torch.equal(end.dual, chains(LATENT, ANSWERS, -math.inf)[2].dual), "these were float64 as well"
    leads = lead(scores(rows, end))
    mean, variance = integrated(quadrature, -math.inf)
    torch.testing.assert_close(leads.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(leads.var(0), variance, atol=0, rtol=0.15)
    assert not torch.allclose(lead(scores(rows, start)).mean(0), mean, atol=0.1), "the start would have passed"


def test_no_weight_is_below_the_lowest() -> None:
    _, start, end = chains(LATENT, ANSWERS, 0.4)
    assert float(start.weights.min()) < 0.4 <= float(end.weights.min())


def test_chains_agree_with_a_metropolis_sampler() -> None:
    """Three options and two scores, one of whose weights is cut."""
    hidden, answers = normal(4, 2, seed=5), torch.tensor([2, 0, 1, 2])
    latent = Latent(normal(1, 4, 3, seed=6), 2 * (hidden @ hidden.mT)[None] + 0.5, normal(1, 4, 3, 2, seed=7))
    lowest = torch.tensor([-0.3, -torch.inf], dtype=torch.float64)
    generator, index = torch.Generator().manual_seed(1), torch.zeros(CHAINS, dtype=torch.long)
    start = sample(latent, find_mode(latent, answers), index, generator)
    end = refine(latent, index, answers, start, lowest.expand(CHAINS, 2), generator, reads=(60,))
    found = scores(latent.pick(index), end)
    found = (found - found.mean(-1, keepdim=True)).flatten(1)
    wanted = metropolis(latent, answers, lowest)
    deviation = wanted.std(0)
    torch.testing.assert_close(found.mean(0) / deviation, wanted.mean(0) / deviation, rtol=0, atol=0.09)
    torch.testing.assert_close(found.std(0) / deviation, torch.ones_like(deviation), rtol=0, atol=0.07)


def metropolis(latent: Latent, answers: Tensor, lowest: Tensor) -> Tensor:
    """Scores less their mean over the options, (K, N C): a random walk of 500 chains, the first third thrown away."""
    generator, count, steps = torch.Generator().manual_seed(2), 500, 1000
    _, size, options, width = latent.design.shape
    factor = torch.linalg.cholesky(latent.kernel[0] + 1e-8 * torch.eye(size).double())

    def at(state: Tensor) -> tuple[Tensor, Tensor]:
        white, weights = state[:, :-width].view(-1, size, options), state[:, -width:]
        scores = latent.offset + factor @ white + torch.einsum("ncs,ks->knc", latent.design[0], weights)
        logs = log_likelihood(scores, answers) - state.square().sum(-1) / 2
        return scores, logs.masked_fill((weights < lowest).any(-1), -torch.inf)

    state, kept = torch.zeros(count, size * options + width, dtype=torch.float64), []
    scores, here = at(state)
    for step in range(steps):
        moved = state + 0.5 * torch.randn(state.shape, generator=generator, dtype=torch.float64)
        other, there = at(moved)
        taken = torch.rand(count, generator=generator, dtype=torch.float64).log() < there - here
        state, here = torch.where(taken[:, None], moved, state), torch.where(taken, there, here)
        scores = torch.where(taken[:, None, None], other, scores)
        if step >= steps // 3 and step % 20 == 0:
            kept.append((scores - scores.mean(-1, keepdim=True)).flatten(1))
    return torch.cat(kept)
