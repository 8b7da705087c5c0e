"""Reptile, FOMAML and MAML on a two-layer network against the same episodes written out in plain torch, in float64.

The oracle holds theta as one flat vector. MAML's gradient is the textbook's product of dense matrices,
(I - alpha H_0) ... (I - alpha H_K-1) g, with g the query's gradient at phi_K and H_k the Hessian of inner loss k.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from abmll.common.config import LearningConfig
from abmll.common.processes import Processes
from abmll.language.adapter import Adapter
from abmll.methods import State, make_rule
from abmll.posterior import Factors

SIZES, RANK, SCALING, K = (4, 5, 3), 2, 1.5, 3
SETTINGS: dict[str, Any] = {
    "inner_steps": K,
    "learning_rate": 3e-2,
    "outer_learning_rate": 2e-2,
    "weight_decay": 0.1,
    "inner_sgd_rate": 5e-2,
    "loss": "tokens",
}
SHAPES = [shape for d_in, d_out in pairwise(SIZES) for shape in ((RANK, d_in), (d_out, RANK))]
Data = tuple[Tensor, Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base_weights() -> list[Tensor]:
    return [normal(d_out, d_in, seed=10 + d_in) for d_in, d_out in pairwise(SIZES)]


def data_of(episode: int) -> list[Data]:
    """K support batches and a query batch of one task."""
    return [
        (normal(6, SIZES[0], seed=1000 * episode + k), normal(6, SIZES[-1], seed=1000 * episode + 100 + k))
        for k in range(K + 1)
    ]


# -- the oracle -----------------------------------------------------------------------------------------------------


def loss_of(flat: Tensor, data: Data) -> Tensor:
    """The network's sum of squared errors, for A_1, B_1, A_2, B_2 in one vector."""
    pieces = flat.split([rows * columns for rows, columns in SHAPES])
    A1, B1, A2, B2 = (piece.view(shape) for piece, shape in zip(pieces, SHAPES, strict=True))
    W1, W2 = base_weights()
    hidden = torch.tanh(data[0] @ (W1 + SCALING * B1 @ A1).T)
    return (hidden @ (W2 + SCALING * B2 @ A2).T - data[1]).square().sum()


def gradient(flat: Tensor, data: Data) -> Tensor:
    flat = flat.detach().requires_grad_()
    return torch.autograd.grad(loss_of(flat, data), flat)[0]


def maml_gradient(theta: Tensor, data: Sequence[Data], second_order: bool) -> Tensor:
    """d loss(phi_K; query) / d theta; without the Hessians to first order."""
    rate, phi, identity = SETTINGS["inner_sgd_rate"], theta, torch.eye(len(theta), dtype=torch.float64)
    product = identity
    for support in data[:-1]:
        if second_order:
            curvature = hessian(lambda flat, support=support: loss_of(flat, support), phi)
            assert isinstance(curvature, Tensor)
            product = product @ (identity - rate * curvature)
        phi = phi - rate * gradient(phi, support)
    return product @ gradient(phi, data[-1])


# -- the rules ------------------------------------------------------------------------------------------------------


def flat_of(adapter: Adapter) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in adapter.mean_tensors()])


@pytest.fixture
def scorer(toy_scorer: Any) -> Any:
    return toy_scorer(base_weights(), RANK, SCALING)


@pytest.fixture
def theta(scorer: Any) -> Adapter:
    """Away from its start: with B zero, half of the gradients would vanish."""
    layers = zip(SHAPES[::2], SHAPES[1::2], strict=True)
    return scorer.adapter(
        [
            Factors(
                0.4 * normal(*A, seed=index),
                0.4 * normal(*B, seed=5 + index),
                normal(1, A[1], seed=7),
                normal(B[0], 1, seed=8),
            )
            for index, (A, B) in enumerate(layers)
        ]
    )


@pytest.fixture
def run(scorer: Any, theta: Adapter, toy_batch: Any) -> Callable[..., State]:
    """The state after some episodes of a method."""

    def episodes(method: str, count: int, **settings: Any) -> State:
        rule = make_rule(scorer, LearningConfig(**{"method": method, **SETTINGS, **settings}), 1)
        state, shares = rule.init(theta), []
        for episode in range(count):
            batches = [toy_batch(x[None], y[None]) for x, y in data_of(episode)]
            rule.begin_episode(state, done=episode / count)
            for k in range(K):
                rule.inner_step(state, batches[k], torch.Generator(), 1.0)
            shares.append(rule.share(state, batches[K], torch.Generator())[1])
            if len(shares) == rule.config.meta_batch:
                rule.take(state, Processes().mean(shares, len(shares)), 1.0)
                shares.clear()
        return state

    return episodes


def adamw(flat: Tensor, rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([flat], lr=rate, weight_decay=SETTINGS["weight_decay"])


def test_reptile(run: Callable[..., State], theta: Adapter) -> None:
    """AdamW on phi from theta, then theta goes 1/2, 3/8, 1/4 and 1/8 of the way."""
    start = flat_of(theta)
    phi = start.clone().requires_grad_()
    optimizer = adamw(phi, SETTINGS["learning_rate"])
    for episode, epsilon in enumerate((0.5, 0.375, 0.25, 0.125)):
        phi.data.copy_(start)
        for support in data_of(episode)[:-1]:
            phi.grad = gradient(phi, support)
            optimizer.step()
        start = start + epsilon * (phi.detach() - start)
    state = run("reptile", 4)
    torch.testing.assert_close(flat_of(state.theta), start, rtol=1e-9, atol=1e-12)
    assert list(state.optimizers()) == ["optimizer_phi"]


@pytest.mark.parametrize("meta_batch", [1, 2])
@pytest.mark.parametrize("method", ["fomaml", "maml"])
def test_maml(run: Callable[..., State], theta: Adapter, method: str, meta_batch: int) -> None:
    """AdamW on the mean of a meta-batch's gradients; FOMAML's are MAML's without the Hessians."""
    start = flat_of(theta).requires_grad_()
    optimizer = adamw(start, SETTINGS["outer_learning_rate"])
    for first in range(0, 4, meta_batch):
        found = [
            maml_gradient(start.detach(), data_of(episode), method == "maml")
            for episode in range(first, first + meta_batch)
        ]
        start.grad = torch.stack(found).mean(0)
        optimizer.step()
    state = run(method, 4, meta_batch=meta_batch)
    torch.testing.assert_close(flat_of(state.theta), start.detach(), rtol=1e-9, atol=1e-12)


def test_the_hessians_matter(theta: Adapter) -> None:
    """Else the two tests above would be one."""
    exact, first_order = (maml_gradient(flat_of(theta), data_of(0), order) for order in (True, False))
    assert torch.linalg.vector_norm(exact - first_order) > 0.1 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize("max_grad_norm", [0.0, 3.0])
def test_maml_against_finite_differences(
    adapt: Callable[..., Adapter], scorer: Any, theta: Adapter, toy_batch: Any, max_grad_norm: float
) -> None:
    """Central differences of the query's loss after adaptation, in every direction; through the clipping too."""
    rule = make_rule(scorer, LearningConfig(method="maml", **SETTINGS, max_grad_norm=max_grad_norm), 1)
    *support, query = [toy_batch(x[None], y[None]) for x, y in data_of(0)]

    def loss_at(shift: Tensor) -> float:
        shifted, place = theta.clone(), 0
        for tensor in shifted.mean_tensors():
            tensor += shift[place : place + tensor.numel()].view(tensor.shape)
            place += tensor.numel()
        phi = adapt(rule, shifted, [(batch, torch.Generator()) for batch in support])
        return -float(scorer.scores(query, phi).answer_tokens.sum())

    state = rule.init(theta)
    rule.begin_episode(state, done=0.0)
    for batch in support:
        rule.inner_step(state, batch, torch.Generator(), 1.0)
    _, share = rule.share(state, query, torch.Generator())
    means = {id(tensor) for tensor in state.theta.mean_tensors()}
    exact = torch.cat([share[name].flatten() for name, tensor in state.theta.named_tensors() if id(tensor) in means])
    size = 1e-5
    steps = size * torch.eye(len(exact), dtype=torch.float64)
    differences = torch.tensor([(loss_at(step) - loss_at(-step)) / (2 * size) for step in steps]).double()
    torch.testing.assert_close(exact, differences, rtol=1e-5, atol=1e-6)


def test_clipping_is_reached(run: Callable[..., State]) -> None:
    free, clipped = (flat_of(run("maml", 1, max_grad_norm=norm).phi) for norm in (0.0, 3.0))
    assert not torch.allclose(free, clipped)


@pytest.mark.parametrize("method", ["reptile", "fomaml", "maml"])
def test_standard_deviations_stay_as_they_were(run: Callable[..., State], theta: Adapter, method: str) -> None:
    state = run(method, 2)
    for before, after in zip(theta.scale_tensors(), state.theta.scale_tensors(), strict=True):
        assert torch.equal(before, after)
