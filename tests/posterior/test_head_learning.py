"""Learning the head's prior: the gradient against finite differences, and what simulated tasks teach."""

import pytest
import torch
from torch import Tensor

from abmll.posterior import head_learning
from abmll.posterior.head import HeadPosterior
from abmll.posterior.head_learning import Episode, Numbers, learn_prior, predictive_nll
from abmll.posterior.hypotheses import HeadPrior, Known

PRIOR = HeadPrior(taus=(0.0, 1.0, 3.0), labelled=((0.2, 0.0, -0.1),) * 3, open=(0.1, 0.0, 0.3, 0.0, -0.2, 0.0))


def simulated(seed: int, is_labelled: bool = True, summed: float = 0.0, features: float = 0.0) -> Episode:
    """12 + 12 examples of 3 options, answered by the summed scores and by directions of the features, so strongly."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(24, 1, 5, generator=generator)
    scores = torch.randn(24, 3, 3, generator=generator).double()
    directions = torch.randn(5, 3, generator=generator)
    lead = summed * scores[..., 1] + features * (hidden[:, 0] @ directions).double()
    noise = -torch.log(-torch.log(torch.rand(24, 3, generator=generator)))  # Gumbel's
    answers = (noise + lead).argmax(-1)
    if not is_labelled:
        wrong = (answers + 1) % 3
        scores[range(0, 24, 2), wrong[::2]] = -torch.inf  # every other example lacks an option
    parts = [Known(hidden[own], scores[own], is_labelled) for own in (slice(12), slice(12, 24))]
    return Episode(parts[0], answers[:12], parts[1], answers[12:])


def loss_at(numbers: Numbers, episode: Episode) -> Tensor:
    return predictive_nll(numbers.hypotheses(PRIOR, episode.support.is_labelled), episode)


@pytest.mark.parametrize("name", Numbers._fields)
@pytest.mark.parametrize("is_labelled", [True, False])
def test_gradients_against_finite_differences(name: str, is_labelled: bool) -> None:
    episode, numbers = simulated(0, is_labelled, summed=0.5, features=0.5), Numbers.of(PRIOR)
    moving = Numbers(*(value.clone().requires_grad_() for value in numbers))
    loss_at(moving, episode).backward()
    at = getattr(numbers, name)
    found = getattr(moving, name).grad
    gradient = torch.zeros_like(at) if found is None else found  # of what plays no part in such a task
    size = 1e-5
    for place in range(at.numel()):
        step = torch.zeros(at.numel(), dtype=torch.float64)
        step[place] = size
        high, low = (loss_at(numbers._replace(**{name: at + sign * step.view_as(at)}), episode) for sign in (1, -1))
        difference = float(high - low) / (2 * size)
        assert float(gradient.flatten()[place]) == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_the_loss_is_that_of_the_samples() -> None:
    """One hypothesis, few features: the exact posterior's samples say nearly what the Gaussian's do."""
    prior = HeadPrior(taus=(0.5,), labelled=((0.0,), (-1e4,), (-1e4,)))
    episode = simulated(1, features=0.5)
    loss = predictive_nll(Numbers.of(prior).hypotheses(prior, True), episode, draws=4000)
    posteriors = [HeadPosterior(prior, episode.support, episode.answers, seed) for seed in range(4)]
    probs = torch.stack([one.probs(episode.query).mean(0) for one in posteriors]).mean(0)
    exact = -probs.gather(-1, episode.query_answers[:, None]).log().sum()
    assert float(loss) == pytest.approx(float(exact), rel=0.03)


def test_numbers_are_the_priors() -> None:
    assert close(Numbers.of(PRIOR).prior(PRIOR), PRIOR)


def close(one: HeadPrior, other: HeadPrior) -> bool:
    """Whether two priors are the same, whatever is added to all log weights."""

    def numbers(prior: HeadPrior) -> Tensor:
        weights = [torch.log_softmax(torch.tensor(row).double().flatten(), 0) for row in (prior.labelled, prior.open)]
        rest = [*prior.weight_mean, *prior.weight_std, prior.bias_std, *prior.taus, *prior.depths]
        return torch.cat([*weights, torch.tensor(rest).double()])

    return torch.allclose(numbers(one), numbers(other), rtol=1e-6)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_learning, "STEPS", 10)


def total(prior: HeadPrior, episodes: list[Episode]) -> float:
    return sum(
        float(predictive_nll(Numbers.of(prior).hypotheses(prior, one.support.is_labelled), one)) for one in episodes
    )


@pytest.mark.usefixtures("few_steps")
def test_the_score_that_counts_is_found_and_others_like_it_are_predicted_better() -> None:
    episodes = [simulated(seed, summed=3.0) for seed in range(3)]
    learned = learn_prior(episodes, PRIOR)
    none, per_token, summed = (torch.tensor(row).double().logsumexp(0) for row in learned.labelled)
    assert float(summed) > float(torch.maximum(none, per_token)) + 0.1
    assert learned.weight_mean[1] > 1.5 * PRIOR.weight_mean[1]
    others = [simulated(seed, summed=3.0) for seed in range(10, 14)]
    assert total(learned, others) < total(PRIOR, others) - 1


@pytest.mark.usefixtures("few_steps")
def test_whether_features_say_anything_is_learned() -> None:
    without, having = (
        learn_prior([simulated(seed, features=strength) for seed in range(3)], PRIOR) for strength in (0.0, 4.0)
    )

    def silent(prior: HeadPrior) -> float:
        """The prior probability of tau = 0."""
        return float(torch.tensor(prior.labelled).double().exp()[:, 0].sum())

    assert silent(having) < silent(PRIOR_WEIGHTS) < silent(without)


PRIOR_WEIGHTS = Numbers.of(PRIOR).prior(PRIOR)


@pytest.mark.usefixtures("few_steps")
def test_without_tasks_the_prior_stays() -> None:
    assert close(learn_prior([], PRIOR), PRIOR)


@pytest.mark.usefixtures("few_steps")
def test_every_step_is_told_and_learning_is_deterministic() -> None:
    episodes, told = [simulated(0, False, summed=1.0), simulated(1, features=1.0)], []
    first = learn_prior(episodes, PRIOR, lambda: told.append(None))
    assert len(told) == 10
    assert learn_prior(episodes, PRIOR) == first
    assert not close(first, PRIOR)
    assert first.depths == PRIOR.depths
