"""Tempering a head: its formula by hand, what it learns, and that no example decides its own answer."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from abmll.posterior import tempering
from abmll.posterior.head import FEWEST_CHAINS, HeadPosterior
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.posterior.tempering import INVERSE, SPREAD, WEIGHT, TemperedHead, dealt, mixed, picked, powered, weights

pytestmark = pytest.mark.usefixtures("few_chains")


def task(size: int = 12, options: int = 3, seed: int = 0, signal: float = 0.0) -> tuple[Known, Tensor]:
    """``signal`` is how far the features of one label lie from those of another."""
    generator = torch.Generator().manual_seed(seed)
    answers = torch.arange(size) % options
    hidden = torch.randn(size, 1, 8, generator=generator)
    hidden[:, 0, :options] += signal * torch.nn.functional.one_hot(answers, options)
    return Known(hidden, torch.zeros(size, options, 3, dtype=torch.float64), True), answers


def test_a_power_is_that_of_the_probabilities() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]], dtype=torch.float64)
    expected = probs**2 / (probs**2).sum(-1, keepdim=True)
    torch.testing.assert_close(powered(probs, 2.0), expected)
    assert powered(probs, 0.5)[1, 2] == 0


def test_the_mixture_is_the_integral_over_inverse_temperatures() -> None:
    """Against numerical integration; the values of a lie evenly in its logarithm."""
    generator = torch.Generator().manual_seed(0)
    held_out = torch.softmax(torch.randn(6, 3, generator=generator, dtype=torch.float64), -1)
    answers = torch.tensor([0, 1, 2, 0, 0, 1])
    logs = torch.stack([powered(held_out, a).gather(1, answers[:, None])[:, 0].log() for a in INVERSE], 1)
    asked = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)

    def joint(log_a: float, with_answer: bool) -> float:
        p, q = held_out.numpy() ** math.exp(log_a), asked.numpy() ** math.exp(log_a)
        likelihood = (p[np.arange(6), answers.numpy()] / p.sum(1)).prod() ** WEIGHT
        return math.exp(-((log_a / SPREAD) ** 2) / 2) * likelihood * (q[0] / q.sum() if with_answer else 1)

    ends = -3.0, 3.0
    integral = quad(joint, *ends, args=(True,))[0] / quad(joint, *ends, args=(False,))[0]
    assert float(mixed(asked, weights(logs))[0]) == pytest.approx(integral, abs=5e-4)


def test_what_was_held_out_is_answered_by_the_others() -> None:
    known, answers = task()
    tempered = TemperedHead(HeadPrior(), known, answers)
    for fold in range(5):
        asked = tempered.fold_of == fold
        others = HeadPosterior(
            HeadPrior(), picked(known, ~asked), answers[~asked], considered=tempered.likely, chains=FEWEST_CHAINS
        )
        torch.testing.assert_close(tempered.held_out[asked], others.probs(picked(known, asked)).mean(0))


def test_folds_side_by_side_are_those_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    before, (known, answers) = torch.get_num_threads(), task(30)
    one_by_one = TemperedHead(HeadPrior(), known, answers).held_out
    monkeypatch.setattr(tempering, "LARGE", 0)
    assert torch.equal(TemperedHead(HeadPrior(), known, answers).held_out, one_by_one)
    assert torch.get_num_threads() == before


def test_an_answer_plays_no_part_in_what_is_held_out_for_it() -> None:
    known, answers = task()
    before = TemperedHead(HeadPrior(), known, answers, folds=12)
    turned = answers.clone()
    turned[4] = 0
    after = TemperedHead(HeadPrior(), known, turned, folds=12)
    assert before.fold_of.unique().numel() == after.fold_of.unique().numel() == 12
    torch.testing.assert_close(after.held_out[4], before.held_out[4], rtol=0, atol=1e-12)
    assert not torch.allclose(after.held_out, before.held_out)


def test_a_fold_is_tempered_by_the_answers_of_the_others() -> None:
    tempered = TemperedHead(HeadPrior(), *task())
    for fold in range(5):
        asked = tempered.fold_of == fold
        expected = mixed(tempered.held_out[asked], weights(tempered.log_likelihood[~asked]))
        assert torch.equal(tempered.cross_validated()[asked], expected)


def test_a_task_that_is_learned_makes_it_surer_and_noise_less_sure() -> None:
    probs = torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64)
    clear, noise = (TemperedHead(HeadPrior(), *task(30, signal=signal)).temper(probs) for signal in (6.0, 0.0))
    assert clear[0, 0] > 0.65
    assert noise[0, 0] < 0.6
    torch.testing.assert_close(clear.sum(-1), torch.ones(1, dtype=torch.float64))


def test_folds_have_every_label_and_equal_examples_stay_together() -> None:
    known, answers = task(20, options=2)
    hidden = torch.cat([known.hidden, known.hidden[:1], known.hidden[:1]])
    twins = Known(hidden, torch.zeros(22, 2, 2), True)
    folds = dealt(twins, torch.cat([answers, torch.tensor([1, 0])]), 5)
    for label in (0, 1):
        assert [int((folds[:20][answers == label] == fold).sum()) for fold in range(5)] == [2] * 5
    assert folds[20] == folds[21] == folds[0]


@pytest.mark.parametrize("size", [1, 3])
def test_equal_examples_teach_no_temperature(size: int) -> None:
    known = Known(torch.ones(size, 1, 4), torch.zeros(size, 2, 2, dtype=torch.float64), True)
    tempered = TemperedHead(HeadPrior(), known, torch.zeros(size, dtype=torch.long))
    probs = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    assert torch.equal(tempered.temper(probs), probs)


def test_options_that_differ_are_tempered_but_for_a_prior_of_version_0_2() -> None:
    known, answers = task()
    differing = known._replace(is_labelled=False)
    assert TemperedHead(HeadPrior(), differing, answers).is_tempered
    old = HeadPrior(weight_mean=(1.0, 0.3), weight_std=(0.5, 0.3), open=(0.0,) * 3)
    assert not TemperedHead(old, differing, answers).is_tempered
    assert TemperedHead(old, known, answers).is_tempered


def test_scores_of_long_options_are_learned_from() -> None:
    """Summed over hundreds of tokens they are hundreds of nats apart, whatever is right."""
    known, answers = task(40, options=4)
    scores = 500 * torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = known._replace(scores=scores, is_labelled=False)
    tempered = TemperedHead(HeadPrior(), known, answers)
    assert float(tempered.hypotheses.sum()) == pytest.approx(1)
    assert bool(tempered.temper(tempered.probs(known).mean(0)).isfinite().all())
