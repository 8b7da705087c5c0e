"""The readout against autograd, dense grids, Monte Carlo, and populations it was drawn from."""

import math

import pytest
import torch
from torch import Tensor

from abmll.posterior.readout import (
    COUNT_BEFORE,
    Evidence,
    Readout,
    ReadoutPrior,
    _derivatives,
    before_examples,
    infer,
    learn_prior,
)

PRIOR = ReadoutPrior(mean=0.6, std=0.4, bias_std=0.8)


def world(count: int, slope: float, biases: list[float], seed: int = 0, labelled: bool = True) -> Evidence:
    """Answers drawn as the model of the readout has it, of scores that are log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logs = torch.log_softmax(2 * torch.randn(count, len(biases), generator=generator, dtype=torch.float64), -1)
    chance = torch.softmax(slope * logs + torch.tensor(biases, dtype=torch.float64), -1)
    return Evidence(logs, torch.multinomial(chance, 1, generator=generator)[:, 0], labelled)


def joint(value: Tensor, prior: ReadoutPrior, evidence: Evidence) -> Tensor:
    """log p(D, w, b | theta) by torch.distributions."""
    scores = value[0] * evidence.log_probs + (value[1:] if evidence.is_labelled else 0.0)
    total = torch.distributions.Categorical(logits=scores).log_prob(evidence.answers).sum()
    total = total + torch.distributions.Normal(prior.mean, prior.std).log_prob(value[0])
    return total + torch.distributions.Normal(0.0, prior.bias_std).log_prob(value[1:]).sum()


@pytest.mark.parametrize("labelled", [True, False])
def test_derivatives_are_those_of_the_density(labelled: bool) -> None:
    evidence = world(7, 0.4, [0.5, -0.5, 0.0], labelled=labelled)
    value = torch.tensor([0.2, 0.1, -0.3, 0.4][: 4 if labelled else 1], dtype=torch.float64)
    gradient, curvature = _derivatives(value, PRIOR, evidence)
    wanted = torch.func.grad(lambda at: -joint(at, PRIOR, evidence))(value)
    torch.testing.assert_close(gradient, wanted)

    def scores(at: Tensor) -> Tensor:
        return at[0] * evidence.log_probs + (at[1:] if labelled else 0.0)

    jacobian, probs = torch.func.jacrev(scores)(value), torch.softmax(scores(value), -1)
    fisher = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    torch.testing.assert_close(curvature, torch.einsum("ncd,nce,nef->df", jacobian, fisher, jacobian))


def test_the_mean_is_the_mode() -> None:
    evidence = world(20, 0.8, [1.0, 0.0, -1.0])
    found = infer(PRIOR, evidence)
    gradient = torch.func.grad(lambda at: joint(at, PRIOR, evidence))(found.mean)
    assert gradient.abs().max() < 1e-4
    others = found.mean + 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert all(joint(other, PRIOR, evidence) < joint(found.mean, PRIOR, evidence) for other in others)


def test_an_inverse_temperature_alone_against_a_dense_grid() -> None:
    evidence = world(40, 0.5, [0.0, 0.0], labelled=False)
    grid = torch.linspace(-3, 4, 4001, dtype=torch.float64)
    density = torch.stack([joint(point[None], PRIOR, evidence) for point in grid])
    weights = torch.softmax(density, 0)
    mean = float((weights * grid).sum())
    std = math.sqrt(float((weights * (grid - mean).square()).sum()))
    found = infer(PRIOR, evidence)
    assert float(found.mean[0]) == pytest.approx(mean, abs=0.3 * std)  # Laplace has the mode
    assert math.sqrt(float(found.covariance[0, 0])) == pytest.approx(std, rel=0.15)


def test_much_evidence_finds_the_truth() -> None:
    found = infer(ReadoutPrior(), world(20_000, 0.7, [0.6, -0.6]))
    assert found.inverse_temperature == pytest.approx(0.7, rel=0.05)
    assert float(found.mean[1] - found.mean[2]) == pytest.approx(1.2, abs=0.06)
    assert found.covariance[0, 0] < 1e-3


def test_without_evidence_the_prior_remains() -> None:
    found = before_examples(PRIOR)
    torch.testing.assert_close(found.mean, torch.tensor([0.6], dtype=torch.float64))
    torch.testing.assert_close(found.covariance, torch.tensor([[0.16]], dtype=torch.float64))
    labelled = infer(PRIOR, Evidence(torch.empty(0, 2).double(), torch.empty(0, dtype=torch.long), True))
    torch.testing.assert_close(labelled.covariance.diagonal(), torch.tensor([0.16, 0.64, 0.64], dtype=torch.float64))


def test_confident_and_wrong_answers_lower_the_inverse_temperature() -> None:
    logs = torch.log(torch.tensor([[0.99, 0.01]] * 20, dtype=torch.float64))
    right = torch.zeros(20, dtype=torch.long)
    mixed = right.clone()
    mixed[::2] = 1
    sure, doubtful = (infer(PRIOR, Evidence(logs, answers, False)).inverse_temperature for answers in (right, mixed))
    assert doubtful < PRIOR.mean < sure


def test_an_absent_option_and_the_order_of_options_change_nothing() -> None:
    evidence = world(15, 0.5, [0.7, 0.0, -0.7])
    order = torch.tensor([2, 0, 1])
    permuted = Evidence(evidence.log_probs[:, order], torch.argsort(order)[evidence.answers], True)
    first, second = infer(PRIOR, evidence), infer(PRIOR, permuted)
    torch.testing.assert_close(second.mean[1:], first.mean[1:][order], rtol=1e-4, atol=1e-6)
    padded = Evidence(torch.cat([evidence.log_probs, torch.full((15, 1), -torch.inf)], -1), evidence.answers, False)
    unlabelled = Evidence(evidence.log_probs, evidence.answers, False)
    torch.testing.assert_close(infer(PRIOR, padded).mean, infer(PRIOR, unlabelled).mean)


def test_probabilities_that_have_underflown_are_survived() -> None:
    logs = torch.tensor([[-700.0, 0.0], [0.0, -700.0]], dtype=torch.float64)
    found = infer(PRIOR, Evidence(logs, torch.tensor([0, 1]), True))
    assert bool(torch.isfinite(found.mean).all())
    assert abs(found.inverse_temperature) < 0.1


def test_options_that_some_examples_lack_survive_answers_that_are_certain_and_wrong() -> None:
    logs = torch.tensor([[-150.0, 0.0, -torch.inf], [-150.0, 0.0, -1.0]] * 10, dtype=torch.float64)
    evidence = Evidence(logs, torch.zeros(20, dtype=torch.long), False)
    found = infer(ReadoutPrior(), evidence)
    assert -0.1 < found.inverse_temperature < 0.1
    assert bool(torch.isfinite(found.covariance).all())
    assert learn_prior([evidence]).mean < 1


def test_what_is_no_gaussian_is_refused() -> None:
    one, eye = torch.zeros(2).double(), torch.eye(2).double()
    for mean, covariance in (
        (one, torch.eye(3).double()),
        (one, -eye),
        (one, eye + torch.tensor([[0.0, 1.0], [0.0, 0.0]])),
        (one * torch.nan, eye),
        (torch.empty(0).double(), torch.empty(0, 0).double()),
    ):
        with pytest.raises(ValueError, match=r"a mean of shape|not finite, or the covariance not"):
            Readout(mean, covariance)
    for values in ((math.nan, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, math.inf)):
        with pytest.raises(ValueError, match="is no prior"):
            ReadoutPrior(*values)


def test_many_samples_of_the_weights_need_fewer_places() -> None:
    readout = infer(PRIOR, world(10, 0.5, [0.7, 0.0, -0.7]))
    probs = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    label = torch.tensor([[0, 1, 2]])
    assert len(readout.read(probs, label)) == 64
    many = readout.read(probs.expand(1024, 1, 3), label)
    assert len(many) == 1024 * 16
    torch.testing.assert_close(many.mean(0), readout.read(probs, label).mean(0), rtol=0, atol=0.02)


def test_reading_is_the_average_over_the_gaussian() -> None:
    readout = infer(PRIOR, world(10, 0.5, [0.7, 0.0, -0.7]))
    probs = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], [[0.6, 0.3, 0.1], [0.4, 0.6, 0.0]]], dtype=torch.float64)
    label = torch.tensor([[0, 1, 2], [2, -1, -1]])
    read = readout.read(probs, label).mean(0)
    draws = torch.distributions.MultivariateNormal(readout.mean, readout.covariance).sample((200_000,))
    biases = torch.cat([draws[:, 1:], torch.zeros(len(draws), 1)], -1)[:, label]
    slopes = draws[:, 0][:, None, None]
    scores = [torch.where(one > 0, slopes * one.log(), -torch.inf) + biases for one in probs]
    exact = torch.stack([torch.softmax(one, -1).mean(0) for one in scores]).mean(0)
    torch.testing.assert_close(read, exact, rtol=0, atol=5e-3)
    assert (read[1, 2], float(read.sum())) == (0.0, pytest.approx(2.0))


def test_at_the_mean_there_is_one_place() -> None:
    readout = Readout(torch.tensor([0.5, 0.3]).double(), torch.eye(2).double())
    read = readout.read(torch.tensor([[[0.9, 0.1]]]), torch.tensor([[0, -1]]), at_mean=True)
    scores = torch.tensor([math.log(0.9) / 2 + 0.3, math.log(0.1) / 2])
    torch.testing.assert_close(read, torch.softmax(scores, 0).double()[None, None], rtol=1e-5, atol=0)


def test_a_certain_inverse_temperature_of_one_reads_what_is_there() -> None:
    probs = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    sure = Readout(torch.ones(1, dtype=torch.float64), torch.full((1, 1), 1e-16, dtype=torch.float64))
    torch.testing.assert_close(sure.read(probs).mean(0), probs[0])


def test_a_prior_is_learned_from_what_was_drawn_from_it() -> None:
    truth = ReadoutPrior(mean=0.6, std=0.4, bias_std=1.2)
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    tasks = [
        world(60, truth.mean + truth.std * float(draw[0]), (truth.bias_std * draw[1:]).tolist(), seed)
        for seed, draw in enumerate(draws)
    ]
    found = learn_prior(tasks)
    assert found.mean == pytest.approx(truth.mean, abs=0.15)
    assert found.std == pytest.approx(truth.std, rel=0.25)
    assert found.bias_std == pytest.approx(truth.bias_std, rel=0.25)


def test_learning_a_prior_goes_on_until_nothing_moves() -> None:
    """Scores that say nothing, labels that say all: only the biases' spread has far to go."""
    logs = torch.full((20, 2), -math.log(2), dtype=torch.float64)
    tasks = [Evidence(logs, torch.full((20,), number % 2), True) for number in range(12)]
    found = learn_prior(tasks)
    assert found.bias_std > 2
    assert found.mean == pytest.approx(1.0, abs=0.05)


def test_half_known_has_the_moments_of_the_mixture() -> None:
    """Against torch.distributions' mixture of the tasks that are known and of those whose scores say nothing."""
    prior = ReadoutPrior(mean=0.7, std=0.3, bias_std=0.9)
    parts = torch.distributions.Normal(torch.tensor([0.7, 0.0]), torch.tensor([0.3, 0.3]))
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), parts)
    found = prior.half_known()
    assert found.mean == pytest.approx(float(mixture.mean))
    assert found.std == pytest.approx(float(mixture.stddev))
    assert found.bias_std == prior.bias_std


def test_a_task_of_which_nothing_is_known_is_answered_with_nothing() -> None:
    """Confident scores that have nothing to do with the answers: twenty of them are enough to believe none."""
    generator = torch.Generator().manual_seed(0)
    logs = torch.log_softmax(3 * torch.randn(20, 4, generator=generator, dtype=torch.float64), -1)
    answers = torch.randint(4, (20,), generator=generator)
    found = infer(ReadoutPrior(1.0, 0.3).half_known(), Evidence(logs, answers, False))
    assert abs(found.inverse_temperature) < 0.15
    read = found.read(logs.exp()[None]).mean(0)
    assert float(read.max()) < 0.6 < float(logs.exp().max())


def test_few_tasks_leave_the_default_its_weight() -> None:
    default = ReadoutPrior()
    assert learn_prior([]) == default
    one = learn_prior([world(2_000, 0.1, [0.0, 0.0], labelled=False)])
    assert one.mean == pytest.approx((COUNT_BEFORE + 0.1) / (COUNT_BEFORE + 1), rel=0.05)
    assert one.std > default.std
    assert one.bias_std == default.bias_std  # nothing was said about it
