"""The calibration against dense grids, importance sampling, Monte Carlo, and populations it was drawn from."""

import math

import pytest
import torch
from torch import Tensor

from abmll.posterior.calibration import (
    DEFAULT_COUNT,
    P_ZERO,
    Calibration,
    CalibrationPrior,
    Evidence,
    before_examples,
    infer,
    learn_prior,
)

PRIOR = CalibrationPrior(mean=0.6, std=0.4, bias_std=0.8)


def world(count: int, slope: float, biases: list[float], seed: int = 0, labelled: bool = True) -> Evidence:
    """Answers drawn as the model of the calibration has it, of scores that are log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logs = torch.log_softmax(2 * torch.randn(count, len(biases), generator=generator, dtype=torch.float64), -1)
    chance = torch.softmax(slope * logs + torch.tensor(biases, dtype=torch.float64), -1)
    return Evidence(logs, torch.multinomial(chance, 1, generator=generator)[:, 0], labelled)


def draws_of_the_prior(prior: CalibrationPrior, num_biases: int, count: int) -> Tensor:
    """(count, 1 + L): zero or from the Gaussian above zero, then the biases."""
    generator = torch.Generator().manual_seed(7)
    slopes = prior.mean + prior.std * torch.randn(4 * count, generator=generator, dtype=torch.float64)
    slopes = slopes[slopes > 0][:count]
    slopes[torch.rand(count, generator=generator) < P_ZERO] = 0.0
    biases = prior.bias_std * torch.randn(count, num_biases, generator=generator, dtype=torch.float64)
    return torch.cat([slopes[:, None], biases], -1)


def importance(prior: CalibrationPrior, evidence: Evidence, count: int = 60_000) -> tuple[Tensor, Tensor]:
    """Draws of the prior, and what each weighs after the evidence."""
    draws = draws_of_the_prior(prior, evidence.num_biases, count)
    biases = draws[:, None, 1:] if evidence.is_labelled else 0.0
    logs = torch.log_softmax(draws[:, :1, None] * evidence.log_probs + biases, -1)
    chosen = logs.gather(-1, evidence.answers.expand(count, -1)[..., None])[..., 0]
    return draws, torch.softmax(chosen.sum(-1), 0)


@pytest.mark.parametrize(("slope", "labelled"), [(0.0, False), (0.5, False), (0.0, True), (0.5, True), (1.0, True)])
def test_the_posterior_against_importance_sampling(slope: float, labelled: bool) -> None:
    evidence = world(20, slope, [0.5, -0.5, 0.0] if labelled else [0.0, 0.0, 0.0], labelled=labelled)
    found = infer(PRIOR, evidence)
    draws, weights = importance(PRIOR, evidence)
    zero = float(weights[draws[:, 0] == 0].sum())
    assert float((found.points[:, 0] == 0).double().mean()) == pytest.approx(zero, abs=0.03)
    mean = weights @ draws
    std = (weights @ (draws - mean).square()).sqrt()
    assert ((found.mean - mean).abs() < 0.35 * std).all()  # Laplace has the mode
    torch.testing.assert_close(found.points.std(0), std, rtol=0.1, atol=0.01)


def test_much_evidence_finds_the_truth() -> None:
    found = infer(CalibrationPrior(), world(20_000, 0.7, [0.6, -0.6]))
    assert found.inverse_temperature == pytest.approx(0.7, rel=0.05)
    assert float(found.mean[1] - found.mean[2]) == pytest.approx(1.2, abs=0.06)
    assert found.points[:, 0].var() < 1e-3
    nothing = infer(CalibrationPrior(), world(20_000, 0.0, [0.6, -0.6]))
    assert nothing.inverse_temperature < 0.01


def test_without_evidence_the_prior_remains() -> None:
    found, drawn = before_examples(PRIOR), draws_of_the_prior(PRIOR, 0, 100_000)
    assert float((found.points[:, 0] == 0).double().mean()) == P_ZERO
    torch.testing.assert_close(found.mean, drawn.mean(0), rtol=0.02, atol=0)
    torch.testing.assert_close(found.points.std(0), drawn.std(0), rtol=0.02, atol=0)
    labelled = infer(PRIOR, Evidence(torch.empty(0, 2).double(), torch.empty(0, dtype=torch.long), True))
    torch.testing.assert_close(labelled.points[:, 1:].std(0), torch.tensor([0.8, 0.8]).double(), rtol=0.1, atol=0)


def test_scores_that_speak_against_the_answers_say_nothing() -> None:
    logs = torch.log(torch.tensor([[0.95, 0.05]] * 40, dtype=torch.float64))
    found = infer(CalibrationPrior(), Evidence(logs, torch.ones(40, dtype=torch.long), False))
    assert float((found.points[:, 0] == 0).double().mean()) == 0.5
    assert 0 < found.inverse_temperature < 0.05


def test_confident_and_wrong_answers_lower_the_inverse_temperature() -> None:
    logs = torch.log(torch.tensor([[0.99, 0.01]] * 20, dtype=torch.float64))
    right = torch.zeros(20, dtype=torch.long)
    mixed = right.clone()
    mixed[::2] = 1
    sure, doubtful = (infer(PRIOR, Evidence(logs, answers, False)).inverse_temperature for answers in (right, mixed))
    assert doubtful < (1 - P_ZERO) * PRIOR.mean < sure


def test_an_absent_option_and_the_order_of_options_change_nothing() -> None:
    evidence = world(15, 0.5, [0.7, 0.0, -0.7])
    order = torch.tensor([2, 0, 1])
    permuted = Evidence(evidence.log_probs[:, order], torch.argsort(order)[evidence.answers], True)
    first, second = infer(PRIOR, evidence), infer(PRIOR, permuted)
    torch.testing.assert_close(second.mean[1:], first.mean[1:][order], rtol=0, atol=0.002)
    padded = Evidence(torch.cat([evidence.log_probs, torch.full((15, 1), -torch.inf)], -1), evidence.answers, False)
    unlabelled = Evidence(evidence.log_probs, evidence.answers, False)
    torch.testing.assert_close(infer(PRIOR, padded).mean, infer(PRIOR, unlabelled).mean)


def test_probabilities_that_have_underflown_are_survived() -> None:
    logs = torch.tensor([[-700.0, 0.0], [0.0, -700.0]], dtype=torch.float64)
    found = infer(PRIOR, Evidence(logs, torch.tensor([0, 1]), True))
    assert found.inverse_temperature < 0.1


def test_options_that_some_examples_lack_survive_answers_that_are_certain_and_wrong() -> None:
    logs = torch.tensor([[-150.0, 0.0, -torch.inf], [-150.0, 0.0, -1.0]] * 10, dtype=torch.float64)
    evidence = Evidence(logs, torch.zeros(20, dtype=torch.long), False)
    found = infer(CalibrationPrior(), evidence)
    assert found.inverse_temperature < 0.1
    assert learn_prior([evidence]).mean < 1


def test_impossible_values_are_refused() -> None:
    for points in (torch.zeros(2), torch.empty(0, 2), torch.tensor([[0.1, torch.nan]]), torch.tensor([[-0.1, 0.0]])):
        with pytest.raises(ValueError, match=r"points of shape|not finite, or its inverse temperature negative"):
            Calibration(points.double())
    for values in ((math.nan, 1.0, 1.0), (-0.1, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, math.inf)):
        with pytest.raises(ValueError, match="is no prior"):
            CalibrationPrior(*values)


def test_many_samples_of_the_weights_need_fewer_points() -> None:
    calibration = infer(PRIOR, world(10, 0.5, [0.7, 0.0, -0.7]))
    probs = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    label = torch.tensor([[0, 1, 2]])
    assert len(calibration.read(probs, label)) == 64
    many = calibration.read(probs.expand(1024, 1, 3), label)
    assert len(many) == 1024 * 16
    torch.testing.assert_close(many.mean(0), calibration.read(probs, label).mean(0), rtol=0, atol=0.02)


def test_reading_is_the_average_over_the_posterior() -> None:
    evidence = world(10, 0.5, [0.7, 0.0, -0.7])
    probs = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], [[0.6, 0.3, 0.1], [0.4, 0.6, 0.0]]], dtype=torch.float64)
    label = torch.tensor([[0, 1, 2], [2, -1, -1]])
    read = infer(PRIOR, evidence).read(probs, label).mean(0)
    draws, weights = importance(PRIOR, evidence)
    biases = torch.cat([draws[:, 1:], torch.zeros(len(draws), 1)], -1)[:, label]
    slopes = draws[:, 0][:, None, None]
    scores = [torch.where(one > 0, slopes * one.log(), 0.0).masked_fill(one == 0, -torch.inf) + biases for one in probs]
    exact = torch.stack([torch.einsum("p,pnc->nc", weights, torch.softmax(one, -1)) for one in scores]).mean(0)
    torch.testing.assert_close(read, exact, rtol=0, atol=0.02)  # Laplace, and 64 points
    assert (read[1, 2], float(read.sum())) == (0.0, pytest.approx(2.0))


def test_at_the_mean_there_is_one_point() -> None:
    calibration = Calibration(torch.tensor([[0.4, 0.1], [0.6, 0.5]]).double())
    read = calibration.read(torch.tensor([[[0.9, 0.1]]]), torch.tensor([[0, -1]]), at_mean=True)
    scores = torch.tensor([math.log(0.9) / 2 + 0.3, math.log(0.1) / 2])
    torch.testing.assert_close(read, torch.softmax(scores, 0).double()[None, None], rtol=1e-5, atol=0)


def test_a_certain_inverse_temperature_of_one_reads_what_is_there() -> None:
    probs = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    torch.testing.assert_close(Calibration(torch.ones(1, 1).double()).read(probs)[0], probs[0])


def test_a_prior_is_learned_from_what_was_drawn_from_it() -> None:
    truth = CalibrationPrior(mean=0.6, std=0.4, bias_std=1.2)
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    tasks = [
        world(60, truth.mean + truth.std * float(draw[0]), (truth.bias_std * draw[1:]).tolist(), seed)
        for seed, draw in enumerate(draws)
    ]
    # What was drawn has moments of its own. With modes for means all three are 5 to 9 % too low.
    slopes = truth.mean + truth.std * draws[:, 0]
    found = learn_prior(tasks)
    assert found.mean == pytest.approx(float(slopes.mean()), rel=0.03)
    assert found.std == pytest.approx(float(slopes.std()), rel=0.03)
    assert found.bias_std == pytest.approx(truth.bias_std * float(draws[:, 1:].square().mean().sqrt()), rel=0.03)


def test_learning_a_prior_goes_on_until_nothing_moves() -> None:
    """Scores that say nothing, labels that say all: only the biases' spread has far to go."""
    logs = torch.full((20, 2), -math.log(2), dtype=torch.float64)
    tasks = [Evidence(logs, torch.full((20,), number % 2), True) for number in range(12)]
    found = learn_prior(tasks)
    assert found.bias_std > 2
    assert found.mean == pytest.approx(1.0, abs=0.05)


def test_a_task_of_which_nothing_is_known_is_answered_with_nothing() -> None:
    """Confident scores that have nothing to do with the answers: twenty of them are enough to trust none."""
    generator = torch.Generator().manual_seed(0)
    logs = torch.log_softmax(3 * torch.randn(20, 4, generator=generator, dtype=torch.float64), -1)
    answers = torch.randint(4, (20,), generator=generator)
    found = infer(CalibrationPrior(1.0, 0.3), Evidence(logs, answers, False))
    assert float((found.points[:, 0] == 0).double().mean()) > 0.95
    read = found.read(logs.exp()[None]).mean(0)
    assert float(read.max()) < 0.3 < 0.9 < float(logs.exp().max())


def test_few_tasks_leave_the_default_its_weight() -> None:
    default = CalibrationPrior()
    assert learn_prior([]) == default
    one = learn_prior([world(2_000, 0.1, [0.0, 0.0], labelled=False)])
    assert one.mean == pytest.approx((DEFAULT_COUNT + 0.1) / (DEFAULT_COUNT + 1), rel=0.05)
    assert one.std > default.std
    assert one.bias_std == default.bias_std  # nothing was said about it
