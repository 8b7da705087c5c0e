"""Metrics against hand computation, brute force, and the peers where those are right."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from abmll.common.errors import DataError
from abmll.experiments.metrics import (
    METRICS,
    Predictions,
    auroc,
    calibration_error,
    evaluate_task,
    mean_over_tasks,
    midranks,
    outcomes,
    pooled,
    reliability_bins,
    risk_coverage,
    squared_calibration_error,
)


@pytest.fixture(scope="module")
def random_predictions():
    """1,000 examples of 4 options whose answers follow a sharpened version of the probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1000, 4)) * 1.5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sharper = probs**0.5 / (probs**0.5).sum(axis=1, keepdims=True)
    answers = np.array([rng.choice(4, p=p) for p in sharper])
    return probs, answers


def ece(confidence, correct, num_bins=15, equal_mass=False):
    return calibration_error(
        reliability_bins(np.array(confidence, dtype=float), np.array(correct, dtype=float), num_bins, equal_mass)
    )


def test_every_metric_by_hand_with_ragged_options():
    # confidences .6 (right), .5 (wrong), .7 (right); bins of width 1/15 hold one example each
    result = evaluate_task([[0.6, 0.4], [0.2, 0.5, 0.3], [0.1, 0.1, 0.7, 0.1]], [0, 2, 2])
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["nll"] == pytest.approx(-(math.log(0.6) + math.log(0.3) + math.log(0.7)) / 3)
    assert result["brier"] == pytest.approx(((0.16 + 0.16) + (0.04 + 0.25 + 0.49) + (0.09 + 0.03)) / 3)
    assert result["ece"] == pytest.approx((0.4 + 0.5 + 0.3) / 3)
    assert result["mean_abs_confidence_gap"] == pytest.approx((0.4 + 0.5 + 0.3) / 3)
    assert result["squared_ce"] == 0  # every bin has one example
    assert result["aurc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert result["auroc"] == 1.0
    assert result["num_examples"] == 3
    assert result["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert result["majority"] == pytest.approx(2 / 3)
    assert set(result) == {*METRICS, "num_examples", "chance", "majority"}


def test_confidence_exactly_one_falls_in_the_last_bin():
    bins = reliability_bins(np.array([1.0, 0.95]), np.array([0.0, 1.0]))
    assert bins.size.tolist() == [0] * 14 + [2]
    # together: accuracy .5, confidence .975. A separate bin for 1.0 would give (1 + .05) / 2 instead
    assert calibration_error(bins) == pytest.approx(0.475)


def test_bins_are_open_below_and_closed_above_and_the_first_is_closed():
    bins = reliability_bins(np.array([0.0, 0.25, 0.5, 0.5000001, 1.0]), np.zeros(5), num_bins=4)
    assert bins.size.tolist() == [2, 1, 1, 1]


def test_empty_bins_contribute_nothing_and_have_no_mean():
    bins = reliability_bins(np.array([0.1, 0.9]), np.array([0.0, 1.0]), num_bins=5)
    assert bins.size.tolist() == [1, 0, 0, 0, 1]
    assert np.isnan(bins.accuracy[1:4]).all()
    assert np.isnan(bins.confidence[1:4]).all()
    assert calibration_error(bins) == pytest.approx((0.1 + 0.1) / 2)


def squared_ce_of_pairs(confidence, correct):
    """By bin of n examples, n / N times the mean product of the gaps of two different ones."""
    gap, bin_of = correct - confidence, np.ceil(confidence * 15)
    total = 0.0
    for own in (np.flatnonzero(bin_of == number) for number in np.unique(bin_of)):
        pairs = [gap[i] * gap[j] for i in own for j in own if i != j]
        total += len(own) * np.mean(pairs) if pairs else 0.0
    return total / len(gap)


def test_squared_calibration_error_is_the_mean_product_of_pairs(random_predictions):
    each = outcomes(*random_predictions)
    for count in (1, 3, 40, 1000):
        confidence, correct = each.confidence[:count], each.correct[:count]
        wanted = squared_ce_of_pairs(confidence, correct)
        assert squared_calibration_error(confidence, correct) == pytest.approx(wanted, abs=1e-12)
    # of equal confidences it is Kumar et al.'s: (.6 - .5)^2 - .6 * .4 / 9
    assert squared_calibration_error(np.full(10, 0.5), np.repeat([1.0, 0.0], [6, 4])) == pytest.approx(0.01 - 0.24 / 9)


@pytest.mark.parametrize("excess", [0.0, 0.08, -0.05])
def test_squared_calibration_error_is_right_on_average(excess):
    """Over all 2^6 outcomes, by their probabilities: bins of three and two examples, and of one, which has no pair."""
    confidence = np.array([0.27, 0.3, 0.32, 0.81, 0.86, 0.95])
    chances = confidence + excess * np.array([1.0, 1.0, 0.5, 1.0, 1.0, 0.0])
    on_average = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=6):
        correct = np.array(outcome)
        likely = np.where(correct == 1, chances, 1 - chances).prod()
        on_average += likely * squared_calibration_error(confidence, correct)
    assert on_average == pytest.approx(excess**2 * (3 * (1 + 0.5 + 0.5) / 3 + 2) / 6, abs=1e-12)


def test_one_example():
    right = evaluate_task([[0.75, 0.25]], [0])
    assert (right["accuracy"], right["ece"], right["ece_equal_mass"], right["aurc"]) == (1, 0.25, 0.25, 0)
    assert right["auroc"] is None
    wrong = evaluate_task([[0.75, 0.25]], [1])
    assert (wrong["accuracy"], wrong["ece"], wrong["aurc"], wrong["brier"]) == (0, 0.75, 1, 1.125)


def test_bf16_probabilities_are_counted_in_float64():
    probs = torch.tensor([[0.625, 0.375], [0.3125, 0.6875]], dtype=torch.bfloat16)
    result = evaluate_task(list(probs.float()), [0, 0])
    assert result["nll"] == pytest.approx(-(math.log(0.625) + math.log(0.3125)) / 2, rel=1e-15)
    many = torch.full((1001, 2), 0.5, dtype=torch.bfloat16)  # counts and sums in bf16 would stop at 256
    assert evaluate_task(list(many.float()), [0] * 1001)["ece"] == 0.5


def test_probabilities_rounded_to_bf16_are_refused():
    with pytest.raises(DataError, match=r"sum 1\.00195"):
        evaluate_task(list(torch.tensor([[0.6, 0.4]], dtype=torch.bfloat16).float()), [0])


def test_ties_in_the_largest_probability_predict_the_first():
    assert outcomes([[0.4, 0.4, 0.2]], [0]).correct[0] == 1
    assert outcomes([[0.4, 0.4, 0.2]], [1]).correct[0] == 0


def test_zero_probability_of_the_right_answer_stays_finite():
    result = evaluate_task([[1.0, 0.0]], [1])
    assert result["nll"] == pytest.approx(708.4, abs=0.1)
    json.dumps(result, allow_nan=False)


def test_equal_mass_bins_never_split_equal_confidences():
    confidence, correct = np.array([0.5] * 6 + [0.9] * 2), np.array([1.0, 0, 0, 1, 0, 1, 1, 1])
    bins = reliability_bins(confidence, correct, num_bins=4, equal_mass=True)
    assert sorted(bins.size.tolist()) == [0, 0, 2, 6]
    assert calibration_error(bins) == pytest.approx((6 * 0.0 + 2 * 0.1) / 8)
    order = np.random.default_rng(1).permutation(8)
    assert ece(confidence[order], correct[order], 4, True) == calibration_error(bins)


def test_equal_mass_bins_hold_equal_counts(random_predictions):
    each = outcomes(*random_predictions)
    assert reliability_bins(each.confidence, each.correct, 10, equal_mass=True).size.tolist() == [100] * 10


def test_perfectly_calibrated_source_has_no_pooled_error_but_a_large_confidence_gap():
    # 10 examples at confidence .6 of which 6 are right: calibrated, though every single example is off
    result = evaluate_task([[0.6, 0.4]] * 10, [0] * 6 + [1] * 4)
    assert result["ece"] == pytest.approx(0, abs=1e-12)
    assert result["ece_equal_mass"] == pytest.approx(0, abs=1e-12)
    assert result["mean_abs_confidence_gap"] == pytest.approx(0.6 * 0.4 + 0.4 * 0.6)


def test_pooling_is_not_the_mean_of_single_examples(random_predictions):
    probs, answers = random_predictions
    single = np.mean([evaluate_task([p], [a])["ece"] for p, a in zip(probs[:200], answers[:200], strict=True)])
    together = evaluate_task(list(probs[:200]), answers[:200])
    assert single == pytest.approx(together["mean_abs_confidence_gap"])
    assert together["ece"] < single - 0.1


def brute_force_aurc(confidence, correct):
    """Mean over all orderings that respect confidence of the mean selective risk."""
    total, orderings = 0.0, 0
    for order in itertools.permutations(range(len(confidence))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            errors = np.cumsum([1 - correct[i] for i in order])
            total += (errors / np.arange(1, len(order) + 1)).mean()
            orderings += 1
    return total / orderings


@pytest.mark.parametrize(
    "confidence", [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.5, 0.5, 0.5, 0.9, 0.1], [0.5] * 6], ids=str
)
def test_aurc_is_the_expectation_over_orderings_of_ties(confidence):
    correct = np.array([1.0, 0, 1, 0, 0, 1])
    coverage, risk = risk_coverage(np.array(confidence), correct)
    assert coverage.tolist() == pytest.approx([k / 6 for k in range(1, 7)])
    assert risk[-1] == pytest.approx(0.5)
    assert risk.mean() == pytest.approx(brute_force_aurc(confidence, correct))


def test_auroc_counts_pairs_and_half_of_ties():
    score, right = np.array([0.9, 0.8, 0.8, 0.3, 0.8]), np.array([1.0, 1, 0, 0, 0])
    pairs = [(s > t) + 0.5 * (s == t) for s in score[right == 1] for t in score[right == 0]]
    assert auroc(score, right) == pytest.approx(np.mean(pairs))
    assert auroc(score, np.ones(5)) is None
    assert auroc(score, np.zeros(5)) is None


def test_midranks_share_the_mean_of_the_ranks_they_cover():
    assert midranks(np.array([0.3, 0.1, 0.3, 0.9])).tolist() == [2.5, 1, 2.5, 4]


def test_majority_is_the_best_constant_answer_by_index_or_text():
    probs, answers = [[0.5, 0.5]] * 4, [0, 1, 0, 1]
    assert evaluate_task(probs, answers)["majority"] == 0.5
    assert evaluate_task(probs, answers, ["yes", "yes", "yes", "no"])["majority"] == 0.75
    assert evaluate_task(probs, [0, 0, 0, 1], ["a", "b", "c", "d"])["majority"] == 0.75


def test_mean_over_tasks_weighs_tasks_equally_and_skips_undefined_auroc():
    tasks = {
        "large": evaluate_task([[0.9, 0.1]] * 3 + [[0.6, 0.4]], [0, 0, 0, 1]),
        "all right": evaluate_task([[0.8, 0.2]], [0]),
    }
    mean = mean_over_tasks(tasks)
    assert mean["accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert mean["auroc"] == tasks["large"]["auroc"] == 1
    assert (mean["auroc_tasks"], mean["num_tasks"], mean["num_examples"]) == (1, 2, 5)
    assert mean_over_tasks({"only": tasks["all right"]})["auroc"] is None


def test_pooled_puts_all_examples_in_one_set_of_bins():
    # each task is off by .25 in opposite directions at the same confidence: calibrated together only
    over = Predictions([[0.75, 0.25]] * 4, [0, 0, 1, 1], ["a", "b", "b", "b"])
    under = Predictions([[0.75, 0.25]] * 4, [0, 0, 0, 0])
    both = pooled({"over": over, "under": under})
    assert evaluate_task(*over)["ece"] == evaluate_task(*under)["ece"] == 0.25
    assert both["ece"] == pytest.approx(0, abs=1e-12)
    assert both["majority"] == pytest.approx((0.75 * 4 + 1.0 * 4) / 8)
    assert (both["num_tasks"], both["num_examples"]) == (2, 8)


@pytest.mark.parametrize(
    ("probs", "answers", "message"),
    [
        ([], [], "no predictions"),
        ([[0.5, 0.5]], [0, 1], "1 predictions but 2 answers"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 0], "example 1.*sum 1.1"),
        ([[1.5, -0.5]], [0], "example 0.*smallest is -0.5"),
        ([[math.nan, 1.0]], [0], "example 0.*nan"),
        ([[0.5, 0.5]], [2], "answer 2 is not an index of its 2 options"),
        ([[0.5, 0.5]], [-1], "answer -1"),
        ([[]], [0], "shape"),
        ([0.5], [0], "shape"),
    ],
)
def test_bad_input_is_refused_by_name(probs, answers, message):
    with pytest.raises(DataError, match=message):
        evaluate_task(probs, answers)


def test_nothing_to_average_or_pool_is_refused():
    with pytest.raises(DataError, match="no evaluated tasks"):
        mean_over_tasks({})
    with pytest.raises(DataError, match="no evaluated tasks"):
        pooled({})


def test_sum_within_tolerance_is_accepted_and_not_renormalised():
    assert outcomes([[0.6005, 0.4]], [0]).confidence[0] == 0.6005


def test_agrees_with_netcal(random_predictions):
    # netcal bins [lower, upper) with the last closed; the same as ours unless a confidence lies on an inner edge
    from netcal.metrics import ECE

    probs, answers = random_predictions
    result = evaluate_task(list(probs), answers)
    assert result["ece"] == pytest.approx(ECE(bins=15).measure(probs, answers), abs=1e-12)
    expected = ECE(bins=10, equal_intervals=False).measure(probs, answers)
    assert result["ece_equal_mass"] == pytest.approx(expected, abs=1e-12)
    assert ece([1.0, 0.95], [0, 1]) == pytest.approx(ECE(bins=15).measure(np.array([1.0, 0.95]), np.array([0, 1])))


def test_agrees_with_torchmetrics(random_predictions):
    from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

    probs, answers = (torch.tensor(x) for x in random_predictions)
    result = evaluate_task(list(probs), answers.tolist())
    expected = multiclass_calibration_error(probs, answers, num_classes=4, n_bins=15, norm="l1")
    assert result["ece"] == pytest.approx(expected.item(), abs=1e-6)
    right = (probs.argmax(dim=1) == answers).long()
    assert result["auroc"] == pytest.approx(binary_auroc(probs.amax(dim=1), right).item(), abs=1e-6)
    assert result["accuracy"] == pytest.approx(right.double().mean().item())
    nll = torch.nn.functional.nll_loss(probs.log(), answers)
    assert result["nll"] == pytest.approx(nll.item(), abs=1e-12)


def test_torchmetrics_gives_confidence_one_a_bin_of_its_own():
    # not agreed with, on purpose: it has num_bins + 1 bins, the last for exactly 1.0, so that these two examples,
    # both of our last bin (|.5 - .975|), are scored apart as (1 + .05) / 2
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, answers = [[1.0, 0.0], [0.95, 0.05]], [1, 0]
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(answers), num_classes=2, n_bins=15)
    assert evaluate_task(probs, answers)["ece"] == pytest.approx(0.475)
    assert theirs.item() == pytest.approx(0.525)
