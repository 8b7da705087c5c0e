"""Labels with an order: what R is, and what a head makes of it."""

import pytest
import torch
from torch import Tensor

from abmll.posterior.head import HeadPosterior
from abmll.posterior.hypotheses import SHARES, HeadPrior, Known
from abmll.posterior.ordinal import Order

ALL = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)


def dense(order: Order, hypothesis: int) -> Tensor:
    """R, (C, C)."""
    share = order.share[hypothesis]
    return (1 - share) * torch.eye(len(order.ranks)).double() + share * torch.outer(order.ranks, order.ranks)


@pytest.mark.parametrize("options", [2, 3, 5])
def test_labels_are_mixed_by_the_root_of_their_covariance(options: int) -> None:
    order, value = Order.of(ALL, options), torch.randn(4, 3, options, dtype=torch.float64)
    for number in range(4):
        covariance = dense(order, number)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
        torch.testing.assert_close(order.spread(value)[number], value[number] @ covariance)
        torch.testing.assert_close(order.mixed(value)[number], value[number] @ root, rtol=0, atol=1e-7)
    picked = order.pick(torch.tensor([3, 0, 0, 2]))
    torch.testing.assert_close(picked.mixed(value)[1:2], value[1:2])


@pytest.mark.parametrize("options", [3, 4, 7])
def test_neighbours_vary_together_and_all_labels_as_much_as_before(options: int) -> None:
    order = Order.of(ALL, options)
    seen = torch.eye(options).double() - 1 / options  # of what is common to all labels a softmax sees nothing
    for number in range(4):
        covariance = seen @ dense(order, number) @ seen
        assert float(covariance.trace()) == pytest.approx(options - 1)
        apart = covariance.diagonal() + covariance[0, 0] - 2 * covariance[0]  # variance of a label less the lowest
        assert bool((apart.diff()[1:] > 0).all()) == (number > 0)


def test_two_labels_have_no_order() -> None:
    order = Order.of(ALL, 2)
    lead = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert [float(lead @ dense(order, number) @ lead) for number in range(4)] == pytest.approx([2.0] * 4)
    known, answers = simulated([-4.0, 4.0], 20)
    plain, ordered = (HeadPosterior(HeadPrior(), known._replace(is_ordered=how), answers) for how in (False, True))
    assert torch.equal(plain.probs(known), ordered.probs(known))


def simulated(slopes: list[float], size: int, seed: int = 0) -> tuple[Known, Tensor]:
    """Examples whose labels follow a direction of their features, by ``slopes``; the model's own scores are noise."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, 1, 6, generator=generator)
    logits = hidden[:, 0, :1] * torch.tensor(slopes)
    answers = torch.distributions.Categorical(logits=logits).probs.multinomial(1, generator=generator)[:, 0]
    scores = torch.randn(size, len(slopes), 3, generator=generator, dtype=torch.float64)
    return Known(hidden, scores, True, True), answers


def following(known: Known, answers: Tensor) -> float:
    """The posterior probability that scores follow the order."""
    return float(HeadPosterior(HeadPrior(), known, answers).hypotheses.view(len(SHARES), -1)[1:].sum())


def test_the_answers_say_whether_there_is_an_order() -> None:
    """Four levels; then the same with the two extremes in the middle."""
    known, answers = simulated([-6.0, -2.0, 2.0, 6.0], 60)
    assert following(known, answers) > 0.9
    assert following(*simulated([2.0, -6.0, 6.0, -2.0], 60)) < 0.3


def test_an_order_that_is_there_makes_better_forecasts() -> None:
    known, answers = simulated([-6.0, -2.0, 2.0, 6.0], 230)
    support, asked = (Known(known.hidden[own], known.scores[own], True) for own in (slice(30), slice(30, 230)))
    losses = []
    for is_ordered in (False, True):
        probs = HeadPosterior(HeadPrior(), support._replace(is_ordered=is_ordered), answers[:30]).probs(asked).mean(0)
        losses.append(-float(probs.gather(-1, answers[30:, None]).log().mean()))
    assert losses[1] < losses[0] - 0.02


def test_the_highest_label_may_come_first() -> None:
    known, answers = simulated([-3.0, 0.0, 3.0], 15)
    turned = Known(known.hidden, known.scores.flip(1), True, True)
    one, other = HeadPosterior(HeadPrior(), known, answers), HeadPosterior(HeadPrior(), turned, 2 - answers)
    assert other.log_evidence == pytest.approx(one.log_evidence, abs=1e-9)
    torch.testing.assert_close(other.hypotheses, one.hypotheses)


def test_the_order_of_the_examples_changes_nothing() -> None:
    known, answers = simulated([-3.0, 0.0, 3.0], 15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    moved = Known(known.hidden[order], known.scores[order], True, True)
    one, other = HeadPosterior(HeadPrior(), known, answers), HeadPosterior(HeadPrior(), moved, answers[order])
    assert other.log_evidence == pytest.approx(one.log_evidence, abs=1e-9)
    torch.testing.assert_close(other.hypotheses, one.hypotheses)


def test_order_matters_among_labels_alone() -> None:
    known, answers = simulated([-3.0, 0.0, 3.0], 15)
    one, other = (
        HeadPosterior(HeadPrior(), Known(known.hidden, known.scores, False, how), answers) for how in (True, False)
    )
    assert torch.equal(one.probs(known), other.probs(known))
