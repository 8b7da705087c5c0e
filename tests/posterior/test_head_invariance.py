"""What changes nothing in a head, and what it does with hardly anything to learn from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.posterior.head import HeadPosterior, Metric
from abmll.posterior.hypotheses import HeadPrior, Hypotheses, Known, centred
from abmll.posterior.mode import find_mode
from tests.posterior.head_cases import (
    LARGER,
    LARGER_ANSWERS,
    apart,
    features,
    known,
    latent_of,
    prior_of,
)

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


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_copies_of_an_example_have_no_spread(copies: int) -> None:
    """Their mean is not theirs to the last bit; what is left is no unit in which others are measured."""
    both = known(5, width=576)
    metric = Metric(both.hidden[:1].expand(copies, -1, -1))
    assert float(metric(both.hidden).norm(dim=1).max()) < 3
