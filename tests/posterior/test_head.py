"""The head against numerical integration over its parameters, and scikit-learn's Gaussian process."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.posterior.elliptical import READS
from abmll.posterior.head import HeadPosterior, Where
from abmll.posterior.hypotheses import SHARES, SUBSETS, HeadPrior, Hypotheses, Known
from abmll.posterior.latent import root
from abmll.posterior.mode import find_mode
from abmll.posterior.paths import Paths, sample
from tests.posterior.head_cases import Exact, Quadrature, apart, features, known, latent_of, prior_of, sampled

WHICH = ((), (0,), (1,), (2,), (0, 2), (1, 2))  # scores count in each of the hypotheses, in their order
SMALL = {2: torch.tensor([1, 0, 1]), 3: torch.tensor([1, 0, 2])}  # answers of three examples, by number of options
CASES = [(2, 0.0, ()), (2, 0.0, (0,)), (2, 2.0, ()), (2, 2.0, (1,)), (3, 0.0, ()), (3, 0.0, (1,)), (3, 2.0, ())]


@pytest.mark.parametrize(("options", "tau", "counting"), CASES)
def test_a_hypothesis_against_numerical_integration(
    options: int, tau: float, counting: tuple[int, ...], quadrature: Quadrature
) -> None:
    """Three examples and three questions: the evidence, which is Laplace's, and the sampled probabilities."""
    both, answers = known(6, options, 4 - options, seed=4), SMALL[options]
    prior = prior_of((tau,), (WHICH.index(counting),))
    exact = Exact(quadrature, prior, both, answers, tau, counting)
    posterior = HeadPosterior(prior, apart(both, 3)[0], answers)
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.2)
    torch.testing.assert_close(sampled(prior, both, answers), exact.probs, rtol=0, atol=0.02)


def differing(seed: int = 4) -> Known:
    """Six examples of three options, some of which are not there."""
    both = known(6, 3, seed=seed, is_labelled=False)
    both.scores[[0, 4, 5], [2, 0, 1]] = -torch.inf
    return both


@pytest.mark.parametrize("counting", WHICH)
def test_where_options_differ_against_numerical_integration(counting: tuple[int, ...], quadrature: Quadrature) -> None:
    both, prior = differing(), prior_of(subsets=(WHICH.index(counting),))
    exact = Exact(quadrature, prior, both, SMALL[3], 0.0, counting)
    posterior = HeadPosterior(prior, apart(both, 3)[0], SMALL[3])
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.2)
    torch.testing.assert_close(sampled(prior, both, SMALL[3]), exact.probs, rtol=0, atol=0.02)


@pytest.mark.parametrize("seed", [4, 5])
def test_free_scores_against_numerical_integration(seed: int, quadrature: Quadrature) -> None:
    both, prior = differing(seed), prior_of(subsets=(len(WHICH),))
    exact = Exact(quadrature, prior, both, SMALL[3], 0.0, (0, 1, 2), is_free=True)
    posterior = HeadPosterior(prior, apart(both, 3)[0], SMALL[3])
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.2)
    assert bool((posterior.paths.weights < 0).any())
    torch.testing.assert_close(sampled(prior, both, SMALL[3]), exact.probs, rtol=0, atol=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_where_options_differ_scores_may_speak_against_what_is_right(sign: int) -> None:
    """Twenty examples whose right option always has the highest score, or the lowest: others are answered likewise."""
    both = known(60, 4, seed=7, is_labelled=False)
    answers = (sign * both.scores[..., 1]).argmax(-1)
    support, asked = apart(both, 20)
    posterior = HeadPosterior(HeadPrior(), support, answers[:20])
    found = posterior.probs(asked).mean(0).argmax(-1)
    assert float((found == answers[20:]).double().mean()) > 0.8
    assert (float(posterior.hypotheses[-1]) > 0.9) == (sign < 0)


def test_where_options_differ_seven_hypotheses_are_weighed(quadrature: Quadrature) -> None:
    both, logs = differing(5), (0.3, -0.4, 0.0, 0.8, -0.5, 0.1, 0.2)
    prior = HeadPrior(weight_mean=(1.0, 0.4, 0.8), open=logs)
    each = [Exact(quadrature, prior, both, SMALL[3], 0.0, counting) for counting in WHICH]
    each.append(Exact(quadrature, prior, both, SMALL[3], 0.0, (0, 1, 2), is_free=True))
    weights = torch.softmax(torch.tensor([one.log_evidence for one in each]).double() + torch.tensor(logs).double(), 0)
    found = HeadPosterior(prior, apart(both, 3)[0], SMALL[3])
    torch.testing.assert_close(found.hypotheses, weights, rtol=0, atol=0.03)
    assert float((weights - torch.softmax(torch.tensor(logs).double(), 0)).abs().max()) > 0.06
    exact = torch.einsum("h,hmc->mc", weights, torch.stack([one.probs for one in each]))
    torch.testing.assert_close(sampled(prior, both, SMALL[3]), exact, rtol=0, atol=0.03)


def test_the_weights_of_scores_that_are_alike_are_not_taken_for_independent(quadrature: Quadrature) -> None:
    """Much of one leaves little of the other: both being positive is no product of two chances."""
    both = differing(2)
    noise = 0.05 * torch.randn(both.scores.shape[:2], generator=torch.Generator().manual_seed(3)).double()
    both.scores[..., 2] = both.scores[..., 1] + noise
    prior = prior_of(subsets=(WHICH.index((1, 2)),), weight_mean=(1.0, 0.1, 0.1), weight_std=(0.5, 1.0, 1.0))
    for answers in torch.tensor([[0, 0, 1], [1, 0, 2], [0, 2, 2], [1, 1, 1]]):  # the scores say little, or the opposite
        exact = Exact(quadrature, prior, both, answers, 0.0, (1, 2))
        posterior = HeadPosterior(prior, apart(both, 3)[0], answers)
        assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.15)


def test_an_order_against_numerical_integration(quadrature: Quadrature) -> None:
    """Two hypotheses of three labels: with no share that follows the order, and with most."""
    both, prior = known(6, 3, 1, seed=4)._replace(is_ordered=True), prior_of((2.0,), (0,))
    answers = SMALL[3]
    each = [Exact(quadrature, prior, both, answers, 2.0, (), share) for share in SHARES]
    logs = torch.tensor([one.log_evidence for one in each]).double()
    found = HeadPosterior(prior, apart(both, 3)[0], answers)
    assert found.log_evidence == pytest.approx(float(torch.logsumexp(logs, 0)) - math.log(2), abs=0.2)
    weights = found.hypotheses.view(2, -1).sum(-1)
    torch.testing.assert_close(weights, torch.softmax(logs, 0), rtol=0, atol=0.03)
    exact = torch.einsum("h,hmc->mc", weights, torch.stack([one.probs for one in each]))
    torch.testing.assert_close(sampled(prior, both, answers), exact, rtol=0, atol=0.02)
    assert float((each[0].probs - each[1].probs).abs().max()) > 0.1


def test_scores_that_point_the_wrong_way_count_against_themselves(quadrature: Quadrature) -> None:
    """A negative w would explain the answers. There is none."""
    answers = torch.tensor([0, 1, 0, 1, 0, 1])
    wrong = -2.0 * torch.nn.functional.one_hot(answers, 2).double()[..., None].expand(-1, -1, 2)
    both = known(6)._replace(scores=wrong)
    prior = prior_of((0.0,), (1,))
    exact = Exact(quadrature, prior, both, answers, 0.0, (0,)).log_evidence
    assert HeadPosterior(prior, both, answers).log_evidence == pytest.approx(exact, abs=0.3)
    uncut = find_mode(*latent_of(prior, both), answers).log_evidence[1]
    assert float(uncut) > exact + 1.0


def test_hypotheses_weigh_and_are_averaged_as_bayes_says(quadrature: Quadrature) -> None:
    """Six of them, not equally likely from the start, integrated one by one."""
    both, answers, taus = known(6, seed=5), SMALL[2], (0.0, 2.0)
    logs = ((0.3, -0.4), (0.0, 0.8), (-0.5, 0.1))
    prior = HeadPrior(taus=taus, labelled=logs)
    single = [Exact(quadrature, prior, both, answers, tau, counting) for counting in WHICH[:3] for tau in taus]
    joint = torch.tensor([one.log_evidence for one in single]).double() + torch.tensor(logs).double().flatten()
    weights = torch.softmax(joint, 0)
    found = HeadPosterior(prior, apart(both, 3)[0], answers)
    torch.testing.assert_close(found.hypotheses, weights, rtol=0, atol=0.03)
    assert float((weights - torch.softmax(torch.tensor(logs).double().flatten(), 0)).abs().max()) > 0.06
    exact = torch.einsum("h,hmc->mc", weights, torch.stack([one.probs for one in single]))
    torch.testing.assert_close(sampled(prior, both, answers), exact, rtol=0, atol=0.03)


def test_the_evidence_of_all_is_their_mean() -> None:
    support, answers = apart(known(5), 5)[0], torch.tensor([1, 0, 1, 1, 0])
    each = [HeadPosterior(prior_of((1.5,), (number,)), support, answers).log_evidence for number in range(3)]
    together = HeadPosterior(prior_of((1.5,)), support, answers)
    assert together.log_evidence == pytest.approx(math.log(sum(map(math.exp, each)) / 3), abs=1e-9)
    torch.testing.assert_close(together.hypotheses, torch.softmax(torch.tensor(each).double(), 0))


def test_samples_are_shared_out_in_proportion() -> None:
    found = HeadPosterior(HeadPrior(), apart(known(5), 5)[0], torch.tensor([1, 0, 1, 1, 0]))
    chosen = found.used.pick(found.index)
    rows = torch.stack([chosen.taus, *chosen.counts.mT], -1)
    for weight, tau, counts in zip(
        found.hypotheses, HeadPrior.taus * 3, [row[:2] for row in SUBSETS[:3] for _ in HeadPrior.taus], strict=True
    ):
        count = int((rows == torch.tensor([tau, *map(float, counts)]).double()).all(-1).sum())
        assert abs(count - len(rows) * float(weight)) <= len(READS)


def test_the_residual_scales_what_the_examples_leave_open() -> None:
    """Of a question whose features no example shares, that is all of g's standard deviation."""
    hypotheses = Hypotheses.of(prior_of((2.0,), (0,), residual=0.25, bias_std=1e-9), True)
    inputs, asked = torch.eye(3, 4, dtype=torch.float64), torch.tensor([[0, 0, 0, 3.0]]).double()
    factor = torch.linalg.cholesky(hypotheses.kernel(inputs @ inputs.T))
    where = Where.of(hypotheses, factor, inputs, asked, torch.zeros(1, 2, 2))
    paths = Paths(torch.zeros(3, 3, 2).double(), torch.zeros(3, 2).double())
    scores = where.scores(paths, torch.arange(3), torch.ones(3, 1, 2).double())
    torch.testing.assert_close(scores, torch.full_like(scores, 0.25 * 2.0 * 3.0))


def test_with_neither_scores_nor_features_answers_are_as_frequent_as_they_were() -> None:
    answers = torch.tensor([2] * 24 + [0] * 12 + [1] * 4)
    both = known(43, 3)
    probs = sampled(prior_of((0.0,), (0,), bias_std=2.0), both, answers, seeds=2)
    torch.testing.assert_close(probs, torch.tensor([0.3, 0.1, 0.6]).double().expand(3, -1), rtol=0, atol=0.02)


def test_two_options_are_scikit_learns_gaussian_process() -> None:
    """A logistic link of the difference of two processes, whose kernel is twice that of each."""
    process = pytest.importorskip("sklearn.gaussian_process")
    both, answers, tau = known(14, width=3), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1]), 1.5
    prior = prior_of((tau,), (0,), bias_std=0.8)
    kernels, inputs = process.kernels, features(both.hidden, 10).numpy()
    kernel = kernels.ConstantKernel(2 * tau**2) * kernels.DotProduct(0.8 / tau)
    model = process.GaussianProcessClassifier(kernel, optimizer=None).fit(inputs[:10], answers.numpy())
    [latent] = latent_of(prior, apart(both, 10)[0])
    mode = find_mode(latent, answers)
    probs = torch.softmax(latent.offset + latent.times(mode.dual), -1)[0, :, 1]
    torch.testing.assert_close(probs, torch.from_numpy(model.base_estimator_.pi_), rtol=1e-4, atol=1e-5)
    assert float(mode.log_evidence[0]) == pytest.approx(model.log_marginal_likelihood_value_, abs=1e-5)
    wanted = torch.from_numpy(model.predict_proba(inputs[10:]))
    gaussian = laplace_probs(prior, both, latent, answers)
    torch.testing.assert_close(gaussian, wanted, rtol=0, atol=0.01)
    torch.testing.assert_close(
        sampled(prior, both, answers, seeds=3), wanted, rtol=0, atol=0.08
    )  # which is not Laplace's


def laplace_probs(prior: HeadPrior, both: Known, latent: Any, answers: Tensor) -> Tensor:
    """Predictive probabilities of hypothesis 0 over the Gaussian at its mode: many samples, as training takes them."""
    count, size = 10_000, len(answers)
    index, generator = torch.zeros(count, dtype=torch.long), torch.Generator().manual_seed(0)
    paths = sample(latent, find_mode(latent, answers), index, generator)
    inputs, hypotheses = features(both.hidden, size), Hypotheses.of(prior, True)
    where = Where.of(hypotheses, root(latent.kernel), inputs[:size], inputs[size:], both.scores[size:])
    noise = torch.randn(count, 1, 2, generator=generator, dtype=torch.float64)
    return torch.softmax(where.scores(paths, index, noise), -1).mean(0)
