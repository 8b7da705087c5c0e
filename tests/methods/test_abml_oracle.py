"""ABML on networks whose answers are known: finite differences of its outer loss, and a conjugate posterior."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.scorer import Pass
from abmll.methods import Loss, State, make_rule
from abmll.posterior import Factors, Noise

Adapt = Callable[..., Adapter]
SIZES, RANK, SCALING, K = (3, 4, 2), 2, 1.5, 2
BETA, GAMMA, NUM_TASKS, PRIOR_STD, SHAPE, RATE = 0.02, 0.3, 4, 0.4, 1.5, 0.2
SETTINGS: dict[str, Any] = {
    "method": "abml",
    "inner_steps": K,
    "inner_sgd_rate": 3e-2,
    "inner_sgd_scale_rate": 2e-2,
    "beta": BETA,
    "gamma": GAMMA,
    "prior_std": PRIOR_STD,
    "gamma_shape": SHAPE,
    "gamma_rate": RATE,
    "loss": "tokens",
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(factors: Factors, scaling: float) -> Normal:
    """The Gaussian over a stack's weights, entry by entry."""
    return Normal(scaling * factors.mean_B @ factors.mean_A, factors.scale_B.exp() @ factors.scale_A.exp())


# -- the outer gradient ---------------------------------------------------------------------------------------------


@pytest.fixture
def scorer(toy_scorer: Any) -> Any:
    pairs = pairwise(SIZES)
    return toy_scorer([normal(d_out, d_in, seed=10 + d_in) for d_in, d_out in pairs], RANK, SCALING)


@pytest.fixture
def theta(scorer: Any) -> Adapter:
    return scorer.adapter(
        [
            Factors(
                0.4 * normal(RANK, d_in, seed=d_in),
                0.4 * normal(d_out, RANK, seed=5 + d_in),
                0.3 * normal(1, d_in, seed=15 + d_in) - 0.7,
                0.3 * normal(d_out, 1, seed=25 + d_in) - 0.7,
            )
            for d_in, d_out in pairwise(SIZES)
        ]
    )


@pytest.fixture
def batches(toy_batch: Any) -> list[Any]:
    """K support batches and a query batch of one task."""
    return [toy_batch(normal(1, 5, SIZES[0], seed=k), normal(1, 5, SIZES[-1], seed=100 + k)) for k in range(K + 1)]


def episode(
    scorer: Any, theta: Adapter, batches: list[Any], **settings: Any
) -> tuple[State, Loss, Mapping[str, Tensor]]:
    """One episode, before theta's step: the loss, and its gradient."""
    rule = make_rule(scorer, LearningConfig(**{**SETTINGS, **settings}), NUM_TASKS)
    state = rule.init(theta)
    rule.begin_episode(state, done=0.0)
    for k in range(K):
        rule.inner_step(state, batches[k], torch.Generator().manual_seed(k), 1.0)
    loss, share = rule.share(state, batches[K], torch.Generator().manual_seed(K))
    assert loss is not None
    return state, loss, share


def outer_loss(adapt: Adapt, scorer: Any, theta: Adapter, batches: list[Any], noise: tuple[Any, int]) -> float:
    """NLL(support and query) + beta KL + (gamma / M) (-log p(theta)) at the posterior that adapting leads to."""
    rule = make_rule(scorer, LearningConfig(**SETTINGS, noise=noise[0], noise_rank=noise[1]), NUM_TASKS)
    phi = adapt(rule, theta, [(batches[k], torch.Generator().manual_seed(k)) for k in range(K)])
    generator, loss = torch.Generator().manual_seed(K), torch.zeros((), dtype=torch.float64)
    for batch in batches:
        how = Pass(Noise(noise[0], generator, None, noise[1]))
        loss -= scorer.scores(batch, phi, how).answer_tokens.sum()
    for shape, factors in phi.stacks.items():
        q, p = dense(factors, SCALING), dense(theta.stacks[shape], SCALING)
        log_prior = Normal(torch.zeros_like(p.mean), PRIOR_STD).log_prob(p.mean).sum()
        log_prior += Gamma(torch.tensor(SHAPE).double(), torch.tensor(RATE).double()).log_prob(p.stddev**-2).sum()
        loss += BETA * kl_divergence(q, p).sum() - GAMMA / NUM_TASKS * log_prior
    return float(loss)


@pytest.mark.parametrize("noise", [("local", 0), ("local", 2), ("shared", 2)])
def test_outer_gradient_against_finite_differences(
    adapt: Adapt, scorer: Any, theta: Adapter, batches: list[Any], noise: tuple[Any, int]
) -> None:
    """Through the inner steps, the divergence's two sides, the noise and the prior: every entry of theta."""
    _, loss, share = episode(scorer, theta, batches, noise=noise[0], noise_rank=noise[1])
    assert float(loss.total) == pytest.approx(outer_loss(adapt, scorer, theta, batches, noise), rel=1e-9)
    size = 1e-5
    for name, tensor in theta.named_tensors():
        differences = torch.zeros_like(tensor)
        for place in range(tensor.numel()):
            sides = []
            for step in (size, -size):
                tensor.view(-1)[place] += step
                sides.append(outer_loss(adapt, scorer, theta, batches, noise))
                tensor.view(-1)[place] -= step
            differences.view(-1)[place] = (sides[0] - sides[1]) / (2 * size)
        torch.testing.assert_close(share[name], differences, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: n + text)


def test_the_whole_task_is_read_once_more(scorer: Any, theta: Adapter, batches: list[Any]) -> None:
    """What it costs is told: K + 1 passes in the outer step, over all examples of the task."""
    state, loss, _ = episode(scorer, theta, batches)
    assert (loss.passes, loss.size, loss.tokens) == (K + 1, 5 * (K + 1), 5 * (K + 1))
    assert vars(state)["support"] == []


def test_a_divergence_without_second_derivatives_is_refused(scorer: Any) -> None:
    for setting in ({"sigma_rank": 2}, {"sigma_floor": 0.1}):
        scorer.adapter_config = type(scorer.adapter_config)(**setting)
        with pytest.raises(ConfigError, match=r"abml differentiates the divergence twice, .* use sigma_rank 1"):
            make_rule(scorer, LearningConfig(**SETTINGS), NUM_TASKS)


# -- the posterior --------------------------------------------------------------------------------------------------

TAU, D_IN, COPIES = 0.5, 4, 10_000


def test_adapting_finds_the_conjugate_posterior(adapt: Adapt, toy_scorer: Any, toy_batch: Any) -> None:
    """Bayesian linear regression, one output and orthogonal inputs: the exact posterior lies in the family.

    Its precision is 1 / sigma'_j^2 + sum_t x_tj^2 / TAU^2. Every input stands in the batch ``COPIES`` times with as
    small a weight, each with noise of its own, so that a step sees the expectation over q(phi) to about a per cent.
    """
    scorer = toy_scorer([torch.zeros(1, D_IN, dtype=torch.float64)], r=1, scaling=1.0)
    prior = Factors(
        normal(1, D_IN, seed=1),
        torch.ones(1, 1, dtype=torch.float64),
        0.3 * normal(1, D_IN, seed=2),
        torch.full((1, 1), -0.3, dtype=torch.float64),
    )
    theta = scorer.adapter([prior])
    scales = torch.tensor([0.3, 0.6, 1.0, 1.5], dtype=torch.float64)
    inputs = torch.linalg.qr(normal(D_IN, D_IN, seed=3)).Q * scales
    targets = inputs @ normal(D_IN, 1, seed=4) + TAU * normal(D_IN, 1, seed=5)
    p = dense(prior, 1.0)
    precision = p.stddev**-2 + scales.square() / TAU**2
    mean = (p.mean * p.stddev**-2 + targets.mT @ inputs / TAU**2) / precision

    config = LearningConfig(
        method="abml", beta=1.0, loss="tokens", inner_sgd_rate=0.02, inner_sgd_scale_rate=0.02, noise_rank=0
    )
    batch = toy_batch(inputs.repeat(COPIES, 1)[None], targets.repeat(COPIES, 1)[None], weight=0.5 / (COPIES * TAU**2))

    def steps() -> Iterator[tuple[Any, torch.Generator]]:
        for _ in range(400):
            yield batch, torch.Generator().manual_seed(0)

    phi = adapt(make_rule(scorer, config, 1), theta, steps())
    [factors] = phi.stacks.values()
    q = dense(factors, 1.0)
    assert (mean - p.mean).abs().max() > 0.3
    assert (precision.rsqrt() / p.stddev).min() < 0.6
    torch.testing.assert_close(q.mean[0], mean, rtol=0.0, atol=0.02)
    torch.testing.assert_close(q.stddev[0], precision.rsqrt(), rtol=0.02, atol=0.0)
