"""Linear regression with a Gaussian prior on its weights, where the exact posterior lies in our family.

y_t = W x_t + tau noise with orthogonal inputs: the posterior factorises over W's entries, its precision is
1 / sigma'_j^2 + lambda_j / tau^2 with lambda_j = sum_t x_tj^2, and with row-constant prior variances its standard
deviations are a rank-1 product. Minimising E_q[NLL] + KL must then find it, and reach -log p(y) exactly.
"""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from abmll.posterior import Factors, Noise, WeightSpace

D_OUT, D_IN, TAU, SCALING = 3, 4, 0.5, 2.0


@pytest.fixture
def problem(generator) -> tuple[Factors, Tensor, Tensor]:
    """theta (L = 1), inputs (D_IN, D_IN) with orthogonal columns, targets (D_IN, D_OUT); float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rank = min(D_OUT, D_IN)  # full rank, so that the posterior mean is representable
    scale_B = torch.full((1, D_OUT, 1), -0.3, dtype=torch.float64)
    theta = Factors(normal(1, rank, D_IN), normal(1, D_OUT, rank), 0.3 * normal(1, 1, D_IN), scale_B)
    inputs = torch.linalg.qr(normal(D_IN, D_IN)).Q * torch.tensor([0.3, 0.6, 1.0, 2.0], dtype=torch.float64)
    return theta, inputs, inputs @ normal(D_IN, D_OUT) + TAU * normal(D_IN, D_OUT)


def expected_nll(mean: Tensor, sigma: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """E over W ~ N(mean, sigma^2) of -log N(targets; inputs W^T, TAU^2), in closed form."""
    spread = (targets - inputs @ mean.mT).square() + inputs.square() @ sigma.square().mT
    log_normaliser = torch.log(torch.tensor(2 * torch.pi * TAU**2, dtype=torch.float64)) / 2
    return spread.sum() / (2 * TAU**2) + targets.numel() * log_normaliser


def exact(theta: Factors, inputs: Tensor, targets: Tensor, dense_normal) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean and standard deviation (D_OUT, D_IN), and -log p(targets)."""
    prior = dense_normal(theta, SCALING)
    prior_mean, prior_sigma = prior.mean[0], prior.stddev[0]
    precision = prior_sigma**-2 + inputs.square().sum(dim=0) / TAU**2
    mean = (prior_mean * prior_sigma**-2 + targets.mT @ inputs / TAU**2) / precision
    evidence = torch.zeros((), dtype=torch.float64)
    for channel in range(D_OUT):
        covariance = inputs * prior_sigma[channel].square() @ inputs.mT + TAU**2 * torch.eye(D_IN, dtype=torch.float64)
        law = MultivariateNormal(inputs @ prior_mean[channel], covariance)
        evidence -= law.log_prob(targets[:, channel])
    return mean, precision.rsqrt(), evidence


@pytest.mark.parametrize("k", [1, 2])
def test_minimising_the_objective_finds_the_posterior_and_the_evidence(problem, dense_normal, k):
    theta, inputs, targets = problem
    mean, sigma, evidence = exact(theta, inputs, targets, dense_normal)
    if k == 2:  # the same prior, its standard deviation split evenly between two components
        half = torch.log(torch.tensor(2.0, dtype=torch.float64))
        theta = theta._replace(
            scale_A=torch.cat([theta.scale_A, theta.scale_A], dim=1) - half, scale_B=theta.scale_B.expand(-1, -1, 2)
        )
    space = WeightSpace(SCALING, k)
    phi = theta.clone_detached().requires_grad_()
    optimizer = torch.optim.LBFGS(list(phi), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-16,
                                  history_size=50, line_search_fn="strong_wolfe")  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        q = dense_normal(phi, SCALING)
        loss = expected_nll(q.mean[0], q.stddev[0], inputs, targets) + space.kl(phi, theta)
        loss.backward()
        return loss

    start = objective().item()
    optimizer.step(lambda: objective().item())
    q = dense_normal(phi, SCALING)
    assert start > evidence.item() + 1.0
    torch.testing.assert_close(objective().detach(), evidence, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(q.mean[0].detach(), mean, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(q.stddev[0].detach(), sigma.expand(D_OUT, -1), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_sampled_likelihood_averages_to_its_closed_form(delta, problem, dense_normal, kind):
    theta, inputs, targets = problem
    samples = inputs.expand(20_000, -1, -1)
    y = delta(WeightSpace(SCALING), theta.unbind()[0], samples, Noise(kind, torch.Generator().manual_seed(0)))
    residuals = (targets - y).square().sum(dim=(1, 2)) / (2 * TAU**2)
    q = dense_normal(theta, SCALING)
    constant = expected_nll(q.mean[0], 0 * q.stddev[0], inputs, inputs @ q.mean[0].mT)
    expected = expected_nll(q.mean[0], q.stddev[0], inputs, targets) - constant
    assert (residuals.mean() - expected).abs() <= 6 * residuals.std() / len(residuals) ** 0.5
