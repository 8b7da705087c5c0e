"""The Gaussian at the mode of a classifier's scores, against dense matrices, SciPy, scikit-learn and `logistic`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from abmll.posterior.latent import Latent, Solver, log_likelihood, precision
from abmll.posterior.logistic import Choices, regress
from abmll.posterior.mode import at_mode, find_mode
from abmll.posterior.ordinal import Order
from abmll.posterior.paths import Rows, sample

ABSENT = (0, 2)  # an example and the option that it has not
SHARES = torch.tensor([0.8, 0.3], dtype=torch.float64)  # of the variance that follow the labels' order


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_latent(
    size: int = 5, options: int = 3, scores: int = 2, tau: float = 1.0, absent: bool = True, ordered: bool = False
) -> Latent:
    """Two hypotheses that differ in everything."""
    hidden = normal(size, 4)
    kernel = torch.stack([tau**2 * hidden @ hidden.mT + 1, 0.3 * tau**2 * hidden @ hidden.mT + 0.1])
    offset, design = normal(2, size, options, seed=1), normal(2, size, options, scores, seed=2)
    if absent:
        offset[:, ABSENT[0], ABSENT[1]], design[:, ABSENT[0], ABSENT[1]] = -torch.inf, 0.0
    return Latent(offset, kernel, design, Order.of(SHARES, options) if ordered else None)


def some_answers(size: int = 5, options: int = 3) -> Tensor:
    answers = torch.arange(size) * 7 % options
    answers[0] = 1
    return answers


def covariance(latent: Latent, hypothesis: int) -> Tensor:
    """The prior's covariance of all scores, (N C, N C)."""
    options = latent.offset.shape[-1]
    design = latent.design[hypothesis].flatten(0, 1)
    labels = torch.eye(options).double()
    if latent.order is not None:
        share, ranks = latent.order.share[hypothesis], latent.order.ranks
        labels = (1 - share) * labels + share * torch.outer(ranks, ranks)
    return torch.kron(latent.kernel[hypothesis], labels) + design @ design.mT


def curvature(probs: Tensor) -> Tensor:
    """diag(p) - p p^T of (N, C) probabilities, in one matrix (N C, N C)."""
    return torch.block_diag(*(row.diag() - torch.outer(row, row) for row in probs))


def dense_mode(latent: Latent, answers: Tensor, hypothesis: int) -> tuple[Tensor, float]:
    """The scores at the mode (N, C), and Laplace's log evidence, all with dense matrices."""
    offset, prior = latent.offset[hypothesis], covariance(latent, hypothesis)
    hot = torch.nn.functional.one_hot(answers, offset.shape[-1]).double()
    one = torch.eye(len(prior)).double()
    dual, scores = torch.zeros(len(prior)).double(), offset

    def energy(at: Tensor) -> float:
        moved = offset + (prior @ at).view(offset.shape)
        return float(0.5 * at @ prior @ at - log_likelihood(moved, answers))

    for _ in range(60):
        probs = torch.softmax(scores, -1)
        bent = curvature(probs)
        target = torch.linalg.solve(one + bent @ prior, bent @ prior @ dual + (hot - probs).flatten())
        share = 1.0
        while share > 1e-9 and energy(dual + share * (target - dual)) > energy(dual):
            share /= 2
        dual = dual + share * (target - dual)
        scores = offset + (prior @ dual).view(offset.shape)
    log_det = torch.linalg.slogdet(one + curvature(torch.softmax(scores, -1)) @ prior).logabsdet
    return scores, -energy(dual) - 0.5 * float(log_det)


def scores_at(latent: Latent, dual: Tensor) -> Tensor:
    return latent.offset + latent.times(dual)


CASES: dict[str, dict[str, Any]] = {
    "some": {},
    "two options": {"options": 2, "absent": False},
    "one score": {"scores": 1},
    "large tau": {"tau": 30.0},
    "one example": {"size": 1},
    "an order": {"ordered": True},
    "an order, large tau": {"ordered": True, "tau": 30.0, "absent": False},
    "an order of five": {"ordered": True, "options": 5},
}


@pytest.mark.parametrize("case", CASES)
def test_mode_and_evidence_against_dense_matrices(case: str) -> None:
    latent = some_latent(**CASES[case])
    answers = some_answers(*latent.offset.shape[1:])
    found = find_mode(latent, answers)
    for hypothesis in range(2):
        scores, evidence = dense_mode(latent, answers, hypothesis)
        torch.testing.assert_close(scores_at(latent, found.dual)[hypothesis], scores, rtol=1e-6, atol=1e-6)
        assert float(found.log_evidence[hypothesis]) == pytest.approx(evidence, abs=1e-7)


def test_no_point_beats_the_mode() -> None:
    """SciPy's minimiser, from elsewhere, over the same scores."""
    optimize = pytest.importorskip("scipy.optimize")
    latent, answers = some_latent(), some_answers()
    root = torch.linalg.cholesky(covariance(latent, 0) + 1e-10 * torch.eye(15).double())

    def energy(at: Any) -> tuple[float, Any]:
        white = torch.from_numpy(at).requires_grad_()
        loss = 0.5 * white.square().sum() - log_likelihood(latent.offset[0] + (root @ white).view(5, 3), answers)
        [gradient] = torch.autograd.grad(loss, white)
        return loss.item(), gradient.numpy()

    best = optimize.minimize(energy, np.ones(15), jac=True, method="BFGS", options={"gtol": 1e-8})
    scores = latent.offset[0] + (root @ torch.from_numpy(best.x)).view(5, 3)
    found = scores_at(latent, find_mode(latent, answers).dual)[0]
    torch.testing.assert_close(found, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_solver_against_a_dense_inverse(with_scores: bool, ordered: bool) -> None:
    latent = some_latent(ordered=ordered)
    latent = latent._replace(design=latent.design * with_scores)
    solver = Solver(latent, torch.softmax(latent.offset, -1))
    value = normal(2, 5, 3, seed=4)
    for hypothesis, solved in enumerate(solver(value)):
        inner = torch.eye(15).double() + curvature(solver.probs[hypothesis]) @ covariance(latent, hypothesis)
        wanted = torch.linalg.solve(inner, value[hypothesis].flatten())
        torch.testing.assert_close(solved.flatten(), wanted)
        log_det, small = precision(latent, solver.probs)
        assert float(log_det[hypothesis]) == pytest.approx(float(torch.logdet(inner)))
        torch.testing.assert_close(small, solver.small)


def test_an_option_that_is_absent_keeps_out() -> None:
    """The mode is that of the examples which have the other options alone, for a prior without what it shares."""
    latent, answers = some_latent(), some_answers()
    only = torch.tensor([ABSENT[0]])
    alone = Latent(latent.offset[:, only], latent.kernel[:, only][..., only], latent.design[:, only])
    narrow = Latent(alone.offset[..., :2], alone.kernel, alone.design[..., :2, :])
    wide, small = find_mode(alone, answers[only]), find_mode(narrow, answers[only])
    torch.testing.assert_close(wide.log_evidence, small.log_evidence)
    torch.testing.assert_close(wide.dual[..., :2], small.dual)
    assert torch.count_nonzero(wide.dual[..., 2]) == 0


def test_copies_of_an_example_are_one_that_counts_as_often() -> None:
    """Three copies of each example: a singular kernel. The same scores maximise the likelihood to the power three."""
    latent, answers = some_latent(absent=False), some_answers()
    often = torch.arange(5).repeat(3)
    copies = Latent(latent.offset[:, often], latent.kernel[:, often][..., often], latent.design[:, often])
    found = find_mode(copies, answers[often])
    scores, evidence = dense_mode(copies, answers[often], 0)
    torch.testing.assert_close(scores_at(copies, found.dual)[0], scores, rtol=1e-6, atol=1e-6)
    assert float(found.log_evidence[0]) == pytest.approx(evidence, abs=1e-6)
    each = scores_at(copies, found.dual).view(2, 3, 5, 3)
    torch.testing.assert_close(each, each[:, :1].expand_as(each))


def test_answers_against_all_odds_have_a_mode() -> None:
    """Every answer starts as good as impossible, so that Newton's whole step leads far uphill."""
    latent, answers = some_latent(tau=3.0, absent=False), some_answers()
    latent = latent._replace(offset=-200.0 * torch.nn.functional.one_hot(answers, 3).double().expand(2, -1, -1))
    found = find_mode(latent, answers)
    hot = torch.nn.functional.one_hot(answers, 3)
    gradient = hot - torch.softmax(scores_at(latent, found.dual), -1) - found.dual  # of the objective, in the scores
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize(("spread", "size"), [(300.0, 20), (300.0, 100), (1000.0, 40)])
def test_scores_hundreds_of_nats_apart_have_a_mode(spread: float, size: int) -> None:
    """As long options have, without anything to learn: where Newton starts there is no curvature to tell how far."""
    for seed in range(4):
        values = spread * normal(1, size, 4, 2, seed=seed)
        answers = torch.randint(4, (size,), generator=torch.Generator().manual_seed(seed))
        latent = Latent(values.sum(-1), torch.zeros(1, size, size).double(), 0.5 * values)
        found = find_mode(latent, answers)
        probs = torch.softmax(scores_at(latent, found.dual), -1)
        gradient = latent.onto(torch.nn.functional.one_hot(answers, 4) - probs - found.dual)
        assert float(gradient.abs().max()) < 1e-4
        assert bool(found.log_evidence.isfinite())


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_mode_is_scikit_learns_regularised_regression(tau: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    hidden, answers = normal(12, 3), some_answers(12)
    latent = Latent(
        torch.zeros(1, 12, 3).double(), tau**2 * (hidden @ hidden.mT)[None], torch.zeros(1, 12, 3, 1).double()
    )
    found = scores_at(latent, find_mode(latent, answers).dual)[0]
    model = linear_model.LogisticRegression(C=tau**2, fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(hidden.numpy(), answers.numpy())
    probs = torch.from_numpy(model.predict_proba(hidden.numpy()))
    torch.testing.assert_close(torch.softmax(found, -1), probs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias_std", [0.0, 0.7])
def test_without_features_it_is_the_regression_of_the_calibration(bias_std: float) -> None:
    """tau = 0 and one score: w and biases of ``logistic.regress``, mode and evidence."""
    values, answers, mean, std = normal(8, 3, 1), some_answers(8), 0.8, 0.6
    latent = Latent(
        mean * values[None, ..., 0], torch.full((1, 8, 8), bias_std**2, dtype=torch.float64), std * values[None]
    )
    found = find_mode(latent, answers)
    features, size = values, 1
    if bias_std:
        features, size = torch.cat([values, torch.eye(3).double().expand(8, -1, -1)], -1), 4
    prior_mean = torch.tensor([mean, 0.0, 0.0, 0.0][:size], dtype=torch.float64)
    prior_std = torch.tensor([std, *[bias_std] * 3][:size], dtype=torch.float64)
    wanted = regress(Choices(torch.zeros(8, 3).double(), features, answers), prior_mean, prior_std)
    assert float(found.log_evidence) == pytest.approx(wanted.log_evidence, abs=1e-8)
    w = mean + std * latent.onto(found.dual)[0]
    biases = bias_std**2 * found.dual[0].sum(0)
    torch.testing.assert_close(torch.cat([w, biases])[:size], wanted.mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("at_all", [False, True])
def test_a_share_of_nothing_is_no_order(at_all: bool) -> None:
    latent, answers = some_latent(), some_answers()
    none = latent._replace(order=Order.of(torch.full((2,), 0.3 * at_all, dtype=torch.float64), 3))
    found, wanted = find_mode(none, answers), find_mode(latent, answers)
    assert torch.allclose(found.dual, wanted.dual, rtol=1e-9, atol=1e-9) != at_all
    assert torch.allclose(found.log_evidence, wanted.log_evidence, rtol=1e-9) != at_all


def drawn(latent: Latent, answers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` samples of hypothesis 0: scores (P, N, C) and weights (P, S)."""
    index = torch.zeros(count, dtype=torch.long)
    paths = sample(latent, find_mode(latent, answers), index, torch.Generator().manual_seed(3))
    rows = latent.pick(index)
    return rows.scores(rows.kernel @ paths.dual, paths.weights), paths.weights


@pytest.mark.parametrize("ordered", [False, True])
def test_samples_have_the_mean_and_covariance_of_the_dense_gaussian(ordered: bool) -> None:
    latent, answers, count = some_latent(size=3, absent=False, ordered=ordered), some_answers(3), 20_000
    scores, _ = drawn(latent, answers, count)
    mode, _ = dense_mode(latent, answers, 0)
    prior = covariance(latent, 0)
    wanted = torch.linalg.inv(torch.linalg.inv(prior) + curvature(torch.softmax(mode, -1)))
    flat = scores.flatten(1)
    error = wanted.diagonal().sqrt() / math.sqrt(count)
    assert bool(((flat.mean(0) - mode.flatten()).abs() < 4.5 * error).all())
    spread = torch.outer(wanted.diagonal(), wanted.diagonal()).sqrt() * math.sqrt(2 / count)
    assert bool(((flat.mT.cov() - wanted).abs() < 4.5 * spread).all())


def test_samples_of_the_weights_have_theirs() -> None:
    latent, answers, count = some_latent(size=3, absent=False), some_answers(3), 20_000
    _, weights = drawn(latent, answers, count)
    mode, _ = dense_mode(latent, answers, 0)
    design = latent.design[0].flatten(0, 1)
    inner = torch.eye(9).double() + curvature(torch.softmax(mode, -1)) @ covariance(latent, 0)
    bent = torch.linalg.solve(inner, curvature(torch.softmax(mode, -1)))
    wanted = torch.eye(2).double() - design.mT @ bent @ design
    mean = latent.onto(find_mode(latent, answers).dual)[0]
    error = wanted.diagonal().sqrt() / math.sqrt(count)
    assert bool(((weights.mean(0) - mean).abs() < 4.5 * error).all())
    torch.testing.assert_close(weights.mT.cov(), wanted, rtol=0, atol=4.5 * math.sqrt(2 / count))


def test_hypotheses_that_are_solved_one_by_one_have_the_same_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And labels as well, as where there are many."""
    latent, answers, index = some_latent(ordered=True), some_answers(), torch.tensor([0, 0, 1])
    results = []
    for at_once in (2**18, 1):
        monkeypatch.setattr("abmll.posterior.latent.CACHED_NUMBERS", at_once)
        monkeypatch.setattr("abmll.posterior.mode.CACHED_NUMBERS", at_once)
        mode = find_mode(latent, answers)
        results.append([*mode, *sample(latent, mode, index, torch.Generator().manual_seed(1))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_are_multiplied_by_the_matrices_of_their_hypotheses() -> None:
    """Against a copy of the matrix for every row, in an order that comes back to a hypothesis."""
    index = torch.tensor([1, 1, 0, 2, 2, 2, 1])
    rows, matrices, values = Rows(index), normal(3, 4, 5), normal(7, 5, 2, seed=1)
    torch.testing.assert_close(rows.times(matrices, values), matrices[index] @ values)
    factors = normal(3, 5, 5, seed=2).tril() + 3 * torch.eye(5).double()
    torch.testing.assert_close(rows.solve_root(factors, values), torch.linalg.solve(factors[index].mT, values))
    designs, weights = normal(3, 5, 2, 3, seed=3), normal(7, 3, seed=4)
    torch.testing.assert_close(rows.along(designs, weights), torch.einsum("pncs,ps->pnc", designs[index], weights))
    torch.testing.assert_close(rows.onto(designs, values), torch.einsum("pncs,pnc->ps", designs[index], values))


def test_a_sample_is_of_its_hypothesis() -> None:
    """The same random numbers: rows of the second hypothesis, behind rows of the first and by themselves."""
    latent, answers = some_latent(), some_answers()
    mode, half = find_mode(latent, answers), 5
    mixed, alone = (
        sample(latent, mode, torch.tensor(index), torch.Generator().manual_seed(1))
        for index in ([0] * half + [1] * half, [1] * 2 * half)
    )
    for one, other in zip(mixed, alone, strict=True):
        torch.testing.assert_close(one[half:], other[half:])
        assert bool((one[:half] != other[:half]).any())


def test_many_samples_solve_their_hypothesis_once() -> None:
    """None of them needs the C N^2 numbers of its solver."""
    size, options, count = 30, 20, 128
    latent = some_latent(size, options, absent=False)
    mode = find_mode(latent, some_answers(size, options))
    with Largest() as largest:
        sample(latent, mode, torch.arange(count) * 2 // count, torch.Generator().manual_seed(1))
    assert largest.numel <= count * size * max(size, 2 * options)


def scaled(latent: Latent, by: Tensor) -> Latent:
    """Another prior for every (3,) ``by``, which moves all that a prior has."""
    absent = latent.offset.isneginf()
    offset = (latent.offset.masked_fill(absent, 0.0) * by[0]).masked_fill(absent, -torch.inf)
    return latent._replace(offset=offset, kernel=latent.kernel * by[1], design=latent.design * by[2])


@pytest.mark.parametrize("of", ["evidence", "mode"])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_gradients_at_the_mode_against_finite_differences(of: str, absent: bool, ordered: bool) -> None:
    latent, answers = some_latent(absent=absent, ordered=ordered), some_answers()

    def value(by: Tensor, find: Callable[[Latent, Tensor], Any]) -> Tensor:
        mode = find(scaled(latent, by), answers)
        return mode.log_evidence.sum() if of == "evidence" else (mode.dual * normal(2, 5, 3, seed=9)).sum()

    at = torch.tensor([0.9, 1.3, 0.7], dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(value(at, at_mode), at)
    steps = 1e-3 * torch.eye(3).double()
    differences = [(value(at.detach() + one, find_mode) - value(at.detach() - one, find_mode)) / 2e-3 for one in steps]
    torch.testing.assert_close(gradient, torch.stack(differences), rtol=1e-5, atol=3e-6)


class Largest(TorchFunctionMode):
    """Counts the numbers of the largest tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else (result,)
        self.numel = max(self.numel, *(one.numel() for one in found if isinstance(one, Tensor)), 0)
        return result


def test_many_examples_of_many_options_need_no_dense_square() -> None:
    size, options = 200, 150
    hidden = normal(size, 8)
    latent = Latent(
        normal(1, size, options, seed=1), (hidden @ hidden.mT + 1)[None], normal(1, size, options, 1, seed=2)
    )
    with Largest() as largest:
        found = find_mode(latent, torch.arange(size) % options)
    assert bool(torch.isfinite(found.dual).all())
    assert bool(torch.isfinite(found.log_evidence).all())
    assert size * size < largest.numel <= options * size * size  # of (N C)^2 = 9e8
