"""What cross-validation says of a task: against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from abmll.experiments.metrics import outcomes
from abmll.experiments.trust import decisions, threshold, trust

PROBS = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3]])
ANSWERS = [0, 1, 2, 1, 2, 0]


def test_metrics_are_scikit_learns() -> None:
    measured = trust(PROBS, ANSWERS)
    assert measured.metrics["accuracy"] == accuracy_score(ANSWERS, PROBS.argmax(1))
    assert measured.metrics["nll"] == pytest.approx(log_loss(ANSWERS, PROBS))
    assert measured.rank_error is None


def test_the_baseline_leaves_each_row_out() -> None:
    answers = [0, 0, 0, 1]
    expected = []
    for left_out in range(4):
        others = [answer for n, answer in enumerate(answers) if n != left_out]
        counts = np.bincount(others, minlength=2) + 1
        expected.append(-np.log(counts[answers[left_out]] / counts.sum()))
    baseline = trust(np.full((4, 2), 0.5), answers).baseline
    assert baseline.accuracy == 0.75
    assert baseline.nll == pytest.approx(np.mean(expected))


def test_the_threshold_is_the_lowest_confidence_that_is_right_often_enough() -> None:
    confidence = np.array([0.5, 0.6, 0.6, 0.7, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99])
    right = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1.0])
    probs = np.stack([confidence, 1 - confidence], 1)
    found = threshold(outcomes(list(probs), [0 if own else 1 for own in right]))
    assert found is not None
    assert tuple(found) == (0.6, 10, 9)


def test_a_few_lucky_rows_are_no_threshold() -> None:
    probs = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 6)
    assert threshold(outcomes(list(probs), [0] * 4 + [1] * 6)) is None


def test_rank_error_is_the_distance_of_the_median() -> None:
    measured = trust(PROBS, [0, 1, 2, 2, 0, 0], ordered=True)
    medians = [0, 1, 1, 0, 2, 1]  # where the cumulated probability reaches one half
    own = np.abs(np.array(medians) - [0, 1, 2, 2, 0, 0]).mean()
    assert measured.rank_error == pytest.approx((own, 5 / 6))


def test_decisions_count_every_label_of_every_row() -> None:
    probs, chosen = np.array([[0.9, 0.2], [0.4, 0.7]]), np.array([[1, 0], [1, 1]])
    measured = decisions(probs, chosen)
    assert measured.metrics["num_examples"] == 4
    assert measured.metrics["accuracy"] == 0.75
    assert measured.metrics["nll"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean())
    assert measured.baseline.accuracy == 0.75  # always yes to the first, either to the second
