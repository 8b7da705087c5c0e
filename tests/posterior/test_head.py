"""The head against numerical integration over its parameters, and scikit-learn's Gaussian process."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.posterior.elliptical import READS
from abmll.posterior.head import HeadPosterior, Metric, Where
from abmll.posterior.hypotheses import SHARES, SUBSETS, HeadPrior, Hypotheses, Known, centred
from abmll.posterior.latent import root
from abmll.posterior.mode import find_mode
from abmll.posterior.paths import Paths, sample

Quadrature = Callable[[Tensor, int], tuple[Tensor, Tensor]]
OFF = -1e4  # log weight of a hypothesis that is not to count


def prior_of(taus: tuple[float, ...] = (0.0, 2.0), subsets: tuple[int, ...] = (0, 1, 2), **changes: Any) -> HeadPrior:
    """A prior of those hypotheses on the scores alone, under which nothing of g's variance is left out."""
    rows = tuple(0.0 if number in subsets else OFF for number in range(len(SUBSETS) + 1))
    labelled = tuple((row,) * len(taus) for row in rows[:3])
    return HeadPrior(**{"taus": taus, "labelled": labelled, "open": rows, "residual": 1.0, **changes})


def known(size: int, options: int = 2, width: int = 2, seed: int = 0, is_labelled: bool = True) -> Known:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, 1, width, generator=generator)
    return Known(hidden, 2 * torch.randn(size, options, 3, generator=generator).double(), is_labelled)


def apart(all_of_them: Known, size: int) -> tuple[Known, Known]:
    """The first ``size`` to learn from, and the others to be asked."""
    hidden, scores, *how = all_of_them
    return Known(hidden[:size], scores[:size], *how), Known(hidden[size:], scores[size:], *how)


def features(hidden: Tensor, size: int) -> Tensor:
    """(N + M, d): of length one, less the first ``size`` ones' mean, over their root mean squared distance to it."""
    flat = hidden[:, 0].double()
    flat = flat / (flat**2).sum(1, keepdim=True).sqrt()
    flat = flat - flat[:size].mean(0)
    return flat / (flat[:size] ** 2).sum(1).mean().sqrt()


def contrasts(options: int, share: float = 0.0) -> Tensor:
    """(C - 1, C): what a softmax sees of labels of which ``share`` follows an order, each line as long as it varies."""
    line = torch.linspace(-1, 1, options, dtype=torch.float64)
    covariance = (1 - share) * torch.eye(options) + share * (options - 1) * torch.outer(
        line, line
    ) / line.square().sum()
    seen = torch.eye(options).double() - 1 / options
    found = torch.linalg.svd(seen @ covariance @ seen)
    return (found.S.sqrt()[:, None] * found.Vh)[: options - 1]


class Exact:
    """Evidence and predictive probabilities of one hypothesis, integrated over its parameters on a grid."""

    def __init__(
        self,
        grid: Quadrature,
        prior: HeadPrior,
        both: Known,
        answers: Tensor,
        tau: float,
        counting: tuple[int, ...],
        share: float = 0.0,
        is_free: bool = False,
    ) -> None:
        size = len(answers)
        scores, logs = torch.zeros(1, *both.scores.shape[:2]).double(), torch.zeros(1).double()
        if both.is_labelled:
            scores, logs = self._of_labels(grid, prior, both, size, tau, share)
        absent = both.scores.isneginf()
        for score in counting:
            mean, std = (0.0, prior.free_std[score]) if is_free else (prior.weight_mean[score], prior.weight_std[score])
            weight = torch.linspace(-6 * std if is_free else 0, mean + 6 * std, 41, dtype=torch.float64)
            density = torch.log_softmax(-0.5 * ((weight - mean) / std) ** 2 + ends(weight), 0)
            values = both.scores.masked_fill(absent, 0.0)[..., score]
            scores = (scores[:, None] + weight[:, None, None] * values).flatten(0, 1)
            logs = (logs[:, None] + density).flatten()
        probs = torch.log_softmax(scores.masked_fill(absent[..., 0], -torch.inf), -1)
        likelihood = probs[:, range(size), answers].sum(-1)
        self.log_evidence = float(torch.logsumexp(logs + likelihood, 0))
        weights = torch.softmax(logs + likelihood, 0)
        self.probs = torch.einsum("g,gmc->mc", weights, probs[:, size:].exp())

    @staticmethod
    def _of_labels(
        grid: Quadrature, prior: HeadPrior, both: Known, size: int, tau: float, share: float
    ) -> tuple[Tensor, Tensor]:
        """g + b on the grid, (G, N + M, C), and its points' log weights (G,)."""
        options = both.scores.shape[1]
        columns = tau * features(both.hidden, size).mT
        shared = torch.cat([columns, prior.bias_std * torch.ones(1, len(both.hidden)).double()])
        shared = torch.linalg.svd(shared, full_matrices=False)
        shared = (shared.S[:, None] * shared.Vh)[shared.S > 1e-9]  # as few dimensions as there are
        lines = (shared[:, None, :, None] * contrasts(options, share)[:, None]).flatten(0, 1)  # (D, N + M, C)
        return grid(lines, {1: 200, 2: 60, 3: 24, 4: 20}[len(lines)])


def ends(values: Tensor) -> Tensor:
    """Logarithms of the trapezoidal rule's weights."""
    logs = torch.zeros_like(values)
    logs[[0, -1]] = math.log(0.5)
    return logs


def sampled(prior: HeadPrior, both: Known, answers: Tensor, seeds: int = 6) -> Tensor:
    """(M, C) predictive probabilities, averaged over several posteriors' samples."""
    support, asked = apart(both, len(answers))
    return torch.stack(
        [HeadPosterior(prior, support, answers, seed).probs(asked).mean(0) for seed in range(seeds)]
    ).mean(0)


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


OLD = HeadPrior(weight_mean=(1.0, 0.3), weight_std=(0.5, 0.3), open=(0.2, -0.1, 0.0))  # as of version 0.2


def learned(prior: HeadPrior, support: Known, asked: Known, size: int = 6) -> list[Tensor]:
    """All that is learned, and what is answered."""
    posterior = HeadPosterior(prior, support, LARGER_ANSWERS[:size])
    return [*posterior.fitted().values(), posterior.probs(asked)]


def with_third(known: Known, value: float | Tensor | None) -> Known:
    """Another third score of the options that are there, or none."""
    if value is None:
        return known._replace(scores=known.scores[..., :2])
    scores = known.scores.clone()
    scores[..., 2] = torch.where(scores[..., 0].isneginf(), -torch.inf, torch.as_tensor(value).double())
    return known._replace(scores=scores)


THIRDS = [None, 0.0, -3e4, torch.linspace(-5, 5, 27).view(9, 3)]


def assert_no_third_changes_a_bit(prior: HeadPrior, both: Known) -> None:
    wanted = learned(prior, *apart(both, 6))
    parts = [apart(with_third(both, third), 6) for third in THIRDS]
    for support, asked in [(one[0], other[1]) for one in parts for other in parts]:
        assert all(map(torch.equal, learned(prior, support, asked), wanted))


def test_a_prior_of_version_0_2_reads_no_third_score_where_options_differ() -> None:
    both = LARGER._replace(scores=LARGER.scores.clone(), is_labelled=False)
    both.scores[[1, 7], [0, 2]] = -torch.inf
    assert_no_third_changes_a_bit(OLD, both)
    assert len(learned(OLD, *apart(both, 6))[0]) == 3
    news, others = (learned(HeadPrior(), *apart(with_third(both, third), 6)) for third in (0.0, THIRDS[-1]))
    assert not torch.equal(news[-1], others[-1])  # which says something to a prior of it


@pytest.mark.parametrize("is_ordered", [False, True])
def test_no_third_score_changes_a_bit_of_labels(is_ordered: bool) -> None:
    both = LARGER._replace(is_ordered=is_ordered)
    assert_no_third_changes_a_bit(HeadPrior(), both)
    new, old = (learned(prior, *apart(both, 6)) for prior in (HeadPrior(), OLD))
    assert all(map(torch.equal, new, old))


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


def latent_of(prior: HeadPrior, support: Known) -> tuple[Any]:
    """The prior of the scores at the examples, for all hypotheses."""
    inputs = features(support.hidden, len(support.hidden))
    return (Hypotheses.of(prior, support.is_labelled).latent(inputs @ inputs.mT, support.scores),)


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


LARGER = known(9, 3, 4, seed=6)
LARGER_ANSWERS = torch.tensor([0, 1, 2, 2, 1, 0, 1, 1, 2])


def test_the_order_of_the_examples_changes_nothing() -> None:
    order = torch.tensor([3, 0, 8, 1, 7, 2, 6, 5, 4])
    moved = Known(LARGER.hidden[order], LARGER.scores[order], True)
    before, after = (
        HeadPosterior(HeadPrior(), *one) for one in ((LARGER, LARGER_ANSWERS), (moved, LARGER_ANSWERS[order]))
    )
    assert after.log_evidence == pytest.approx(before.log_evidence, abs=1e-9)
    torch.testing.assert_close(after.hypotheses, before.hypotheses)
    duals = [
        find_mode(*latent_of(HeadPrior(), one), answers).dual
        for one, answers in ((LARGER, LARGER_ANSWERS), (moved, LARGER_ANSWERS[order]))
    ]
    torch.testing.assert_close(duals[1], duals[0][:, order])


def test_the_order_of_the_labels_changes_nothing() -> None:
    order = torch.tensor([2, 0, 1])  # column c is now what order[c] was
    moved, answers = LARGER._replace(scores=LARGER.scores[:, order]), order.argsort()[LARGER_ANSWERS]
    before, after = HeadPosterior(HeadPrior(), LARGER, LARGER_ANSWERS), HeadPosterior(HeadPrior(), moved, answers)
    assert after.log_evidence == pytest.approx(before.log_evidence, abs=1e-9)
    torch.testing.assert_close(after.hypotheses, before.hypotheses)
    duals = find_mode(*latent_of(HeadPrior(), LARGER), LARGER_ANSWERS).dual
    torch.testing.assert_close(find_mode(*latent_of(HeadPrior(), moved), answers).dual, duals[..., order])


@pytest.mark.parametrize("is_labelled", [True, False])
def test_an_answer_does_not_depend_on_what_else_is_asked(is_labelled: bool) -> None:
    """Where options differ the questions have two of them alone, and three in company."""
    support = LARGER._replace(is_labelled=is_labelled)
    posterior, asked = HeadPosterior(HeadPrior(), support, LARGER_ANSWERS), known(4, 3, 4, 7, is_labelled)
    width = 3 if is_labelled else 2
    asked.scores[:2, width:] = -torch.inf
    together = posterior.probs(asked)
    alone = posterior.probs(Known(asked.hidden[1:2], asked.scores[1:2, :width], is_labelled))
    torch.testing.assert_close(together[:, 1:2, :width], alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(together.sum(-1), torch.ones(len(together), 4).double())


def test_where_options_differ_features_and_frequencies_say_nothing() -> None:
    """The evidence of no score is that of guessing; every sample of it says the same of all options."""
    support = LARGER._replace(is_labelled=False)
    posterior = HeadPosterior(prior_of(subsets=(0,)), support, LARGER_ANSWERS)
    assert posterior.log_evidence == pytest.approx(-9 * math.log(3), abs=1e-6)
    probs = posterior.probs(support)
    torch.testing.assert_close(probs, torch.full_like(probs, 1 / 3))


def test_a_single_example_is_learned_from() -> None:
    posterior = HeadPosterior(HeadPrior(), apart(LARGER, 1)[0], LARGER_ANSWERS[:1])
    probs = posterior.probs(apart(LARGER, 1)[1])
    assert bool(torch.isfinite(probs).all())
    assert bool((probs.mean(0)[:, 0] > 0.2).any())


def test_scores_are_centred_over_the_options_that_are_there() -> None:
    scores = torch.tensor([[[1.0, 2.0], [3.0, 8.0], [-torch.inf, -torch.inf]]]).double()
    values, absent = centred(scores)
    assert values.tolist() == [[[-1.0, -3.0], [1.0, 3.0], [0.0, 0.0]]]
    assert absent.tolist() == [[False, False, True]]


def test_the_metric_is_of_unit_length_about_the_examples_mean() -> None:
    hidden = known(7, width=5).hidden
    torch.testing.assert_close(Metric(hidden[:4])(hidden), features(hidden, 4))


WRONG: list[dict[str, Any]] = [
    {"weight_mean": (1.0,)},
    {"weight_mean": (1.0, 1.0)},
    {"weight_mean": (1.0, 0.0, 1.0)},
    {"weight_mean": (math.nan, 1.0, 1.0)},
    {"weight_std": (0.5, -0.3, 1.0)},
    {"bias_std": 0.0},
    {"bias_std": math.inf},
    {"taus": (1.0, 2.0)},
    {"taus": (0.0, 1.0, 2.0, -4.0)},
    {"taus": (), "labelled": ((),) * 3},
    {"labelled": ((0.0,) * 4,) * 2},
    {"labelled": ((0.0, 0.0, 0.0, math.inf), *((0.0,) * 4,) * 2)},
    {"open": (0.0, 0.0)},
    {"open": (0.0,) * 3},
    {"open": (*(0.0,) * 5, math.nan)},
    {"open": (0.0,) * 8},
    {"free_std": (1.0, 0.0, 1.0)},
    {"free_std": (1.0, 1.0)},
    {"depths": ()},
    {"depths": (0.0,)},
    {"depths": (0.5, 1.1)},
]


@pytest.mark.parametrize("change", WRONG)
def test_what_is_no_prior_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no prior"):
        HeadPrior(**change)


def test_a_prior_survives_json() -> None:
    prior = replace(HeadPrior(), weight_mean=(0.1 + 0.2, 1 / 3, 1.0), open=(-0.1, 0.0, *(1e-9,) * 4), depths=(0.5, 1.0))
    assert HeadPrior.of(asdict(prior)) == prior
    assert HeadPrior.of(json.loads(json.dumps(asdict(prior)))) == prior


@pytest.mark.parametrize("document", [{"taus": "x"}, {"taus": 1.0}, {"width": 1.0}, {"bias_std": [1.0]}])
def test_another_document_is_no_prior(document: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        HeadPrior.of(document)


def test_depths_are_shares_of_the_blocks() -> None:
    assert replace(HeadPrior(), depths=(0.01, 0.5, 1.0)).blocks(30) == (1, 15, 30)
    assert replace(HeadPrior(), depths=(0.95, 1.0)).blocks(2) == (2,)


def test_without_scores_a_third_of_the_hypotheses_says_the_same() -> None:
    """A score of nearly nothing makes all of them be considered."""
    generator = torch.Generator().manual_seed(0)
    hidden, answers = torch.randn(12, 1, 6, generator=generator), torch.arange(12) % 3
    none = torch.zeros(12, 3, 2, dtype=torch.float64)
    faint = 1e-9 * torch.randn(12, 3, 2, generator=generator, dtype=torch.float64)
    few, all_of_them = (HeadPosterior(HeadPrior(), Known(hidden, own, True), answers) for own in (none, faint))
    assert 3 * len(few.hypotheses) == len(all_of_them.hypotheses)
    assert few.log_evidence == pytest.approx(all_of_them.log_evidence, abs=1e-6)
    by_tau = all_of_them.hypotheses.view(3, -1).sum(0)
    torch.testing.assert_close(few.hypotheses, by_tau, rtol=0, atol=1e-6)


def test_equal_scores_are_scores() -> None:
    """What a single example has may be equal by chance; the questions' scores count all the same."""
    known = Known(torch.randn(2, 1, 4), torch.full((2, 2, 2), -8.25, dtype=torch.float64), True)
    assert len(Hypotheses.of_task(HeadPrior(), known).taus) == 3 * len(HeadPrior().taus)


def test_a_head_works_in_one_thread_and_leaves_the_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = [], torch.get_num_threads()

    def find(latent: Any, answers: Tensor) -> Any:
        seen.append(torch.get_num_threads())
        return find_mode(latent, answers)

    monkeypatch.setattr("abmll.posterior.head.find_mode", find)
    torch.set_num_threads(3)
    try:
        HeadPosterior(HeadPrior(), apart(LARGER, 5)[0], LARGER_ANSWERS[:5])
        with pytest.raises(RuntimeError):  # more answers than examples
            HeadPosterior(HeadPrior(), apart(LARGER, 5)[0], LARGER_ANSWERS)
        assert (seen, torch.get_num_threads()) == ([1, 1], 3)
    finally:
        torch.set_num_threads(before)
