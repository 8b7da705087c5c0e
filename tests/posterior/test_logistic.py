"""Bayesian logistic regression against autograd, torch.distributions and dense grids."""

import math

import pytest
import torch
from torch import Tensor

from abmll.posterior.logistic import Choices, _derivatives, _energy, moments, regress


def some_choices(count: int = 12, options: int = 3, size: int = 2, seed: int = 0) -> Choices:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, options, generator=generator, dtype=torch.float64)
    offset[0, 2] = -torch.inf  # an option that the first example has not
    features = torch.randn(count, options, size, generator=generator, dtype=torch.float64)
    return Choices(offset, features, torch.randint(2, (count,), generator=generator))


MEAN, STD = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.7, 1.5]).double()


def log_joint(value: Tensor, choices: Choices) -> Tensor:
    """log p(answers, v) by torch.distributions, of any number of values (..., D)."""
    scores = choices.offset + torch.einsum("ncd,...d->...nc", choices.features, value)
    likelihood = torch.distributions.Categorical(logits=scores).log_prob(choices.answers).sum(-1)
    return likelihood + torch.distributions.Normal(MEAN, STD).log_prob(value).sum(-1)


def test_derivatives_are_those_of_the_density() -> None:
    choices, value = some_choices(), torch.tensor([0.5, -0.4]).double()
    gradient, hessian = _derivatives(value, choices, MEAN, STD)
    torch.testing.assert_close(gradient, torch.func.grad(lambda at: -log_joint(at, choices))(value))
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda at: -log_joint(at, choices), value))
    other = value + 1
    difference = _energy(other, choices, MEAN, STD) - _energy(value, choices, MEAN, STD)
    assert difference == pytest.approx(float(log_joint(value, choices) - log_joint(other, choices)))


def test_the_gaussian_is_that_of_the_mode() -> None:
    choices = some_choices()
    found = regress(choices, MEAN, STD)
    assert torch.func.grad(lambda at: log_joint(at, choices))(found.mean).abs().max() < 1e-4
    hessian = torch.autograd.functional.hessian(lambda at: -log_joint(at, choices), found.mean)
    assert isinstance(hessian, torch.Tensor)
    torch.testing.assert_close(found.covariance @ hessian, torch.eye(2).double())
    others = found.mean + 0.3 * torch.randn(100, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (log_joint(others, choices) < log_joint(found.mean, choices)).all()


def test_the_evidence_against_a_dense_grid() -> None:
    choices = some_choices()
    axis = torch.linspace(-9, 9, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    joint = log_joint(grid, choices)
    integral = float(torch.logsumexp(joint, 0)) + 2 * math.log(float(axis[1] - axis[0]))
    assert regress(choices, MEAN, STD).log_evidence == pytest.approx(integral, abs=0.05)  # Laplace is not exact


def test_the_moments_against_a_dense_grid() -> None:
    """Few answers leave a skewed posterior, of which Laplace's second moments are 6 and 14 % too low."""
    choices = some_choices(6, seed=3)
    # The larger the first number of v, the better it explains every answer.
    choices.features[..., 0] = torch.nn.functional.one_hot(choices.answers, 3).double()
    axis = torch.linspace(-9, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    weights = torch.softmax(log_joint(grid, choices), 0)
    first, second = moments(choices, MEAN, STD)
    torch.testing.assert_close(first, weights @ grid, rtol=0.01, atol=0.005)
    torch.testing.assert_close(second, weights @ grid.square(), rtol=0.02, atol=0)
    mode = regress(choices, MEAN, STD)
    laplace = mode.mean.square() + mode.covariance.diagonal()
    assert (laplace < 0.95 * second).all()
    assert torch.equal(moments(choices, MEAN, STD)[0], first)


def test_with_nothing_to_learn_the_evidence_is_the_likelihood() -> None:
    choices = some_choices(size=0)
    empty = torch.empty(0, dtype=torch.float64)
    found = regress(choices, empty, empty)
    likelihood = torch.log_softmax(choices.offset, -1).gather(-1, choices.answers[:, None]).sum()
    assert found.log_evidence == pytest.approx(float(likelihood))
    assert (found.mean.shape, found.covariance.shape) == ((0,), (0, 0))


def test_without_answers_the_prior_remains() -> None:
    none = Choices(torch.empty(0, 3).double(), torch.empty(0, 3, 2).double(), torch.empty(0, dtype=torch.long))
    found = regress(none, MEAN, STD)
    torch.testing.assert_close(found.mean, MEAN)
    torch.testing.assert_close(found.covariance, STD.square().diag())
    assert found.log_evidence == pytest.approx(0.0)


def test_steps_that_are_too_long_are_shortened() -> None:
    """Where every answer is certain and wrong, Newton's first step overshoots by far."""
    features = torch.tensor([[[0.0], [-700.0]], [[-700.0], [0.0]]] * 4, dtype=torch.float64)
    answers = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0])
    found = regress(Choices(torch.zeros(8, 2).double(), features, answers), *(torch.ones(2, 1).double()))
    assert 0 < float(found.mean) < 0.1
    assert bool(torch.isfinite(found.covariance).all())
