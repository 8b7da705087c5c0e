"""How far the answers of one task can be trusted: what cross-validation on its labelled examples says."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from abmll.common.errors import ConfigError
from abmll.common.progress import progress
from abmll.experiments.metrics import Floats, Outcomes, evaluate_task, outcomes
from abmll.model.cross_validation import cross_validate
from abmll.model.learned_task import TaskPosterior
from abmll.model.multi_label import MultiLabelHead
from abmll.posterior.tempering import FOLDS
from abmll.tasks.labelled import LabelledRows

WANTED, FEWEST = 0.9, 5  # share of right answers; of how many at least


class Baseline(NamedTuple):
    """What the labels' frequencies alone would reach, each example's own label left out."""

    accuracy: float
    nll: float


class Threshold(NamedTuple):
    """The lowest confidence from which on at least ``WANTED`` of the answers were right."""

    confidence: float
    covered: int
    right: int


class Trust(NamedTuple):
    """Of N labelled examples.

    Args:
        metrics: what ``evaluate_task`` says of the answers.
        baseline: the most frequent label.
        threshold: None where no confidence is high enough.
        each: the outcomes, for figures.
        rank_error: the mean distance in ranks between answer and label, where labels have an order; and that of the
            constant answer that is best by it.
    """

    metrics: dict[str, Any]
    baseline: Baseline
    threshold: Threshold | None
    each: Outcomes
    rank_error: tuple[float, float] | None = None


class Measured(NamedTuple):
    """What cross-validation says of N rows with C labels."""

    labels: tuple[str, ...]
    probs: NDArray[np.float64]  # (N, C)
    chosen: NDArray[np.int64]  # (N, C) 1 where a row has a label
    trust: Trust


def measure(
    posterior: TaskPosterior, rows: LabelledRows, folds: int = FOLDS, ordered: bool = False, quiet: bool = True
) -> Measured:
    """Cross-validate what was learned of these rows. Raises ``ConfigError`` where it is no head, as ``cross_validate``
    for the number of folds."""
    head, examples = posterior.head, rows.examples()
    if head is None:
        raise ConfigError("cross-validation needs a head; learn the task with how='head'")
    labels = head.labels
    chosen = np.array([[int(label in own) for label in labels] for own in rows.chosen])
    if isinstance(head, MultiLabelHead):
        heads = progress(head.heads, "cross-validating", "label", quiet=quiet)
        probs = np.stack([cross_validate(one, examples, folds)[:, 1].numpy() for one in heads], 1)
        return Measured(labels, probs, chosen, decisions(probs, chosen))
    probs = cross_validate(head, examples, folds, quiet).numpy()
    return Measured(labels, probs, chosen, trust(probs, chosen.argmax(1).tolist(), ordered))


def trust(probs: NDArray[np.float64], answers: Sequence[int], ordered: bool = False) -> Trust:
    """How good the probabilities (N, C) of examples are whose right columns are ``answers`` (N,)."""
    each = outcomes(list(probs), answers)
    metrics = evaluate_task(list(probs), answers)
    rank_error = _rank_error(probs, np.asarray(answers)) if ordered else None
    return Trust(metrics, _baseline(np.asarray(answers), probs.shape[1]), threshold(each), each, rank_error)


def decisions(probs: NDArray[np.float64], chosen: NDArray[np.int64]) -> Trust:
    """``trust`` of N x C decisions on whether a label applies: ``probs`` that it does, and whether it does (0 or 1).

    The baseline decides for every label as most examples do.
    """
    both = np.stack([1 - probs, probs], -1)
    each = trust(both.reshape(-1, 2), chosen.reshape(-1).tolist())
    own = [_baseline(column, 2) for column in chosen.T]
    mean = Baseline(*(float(np.mean(values)) for values in zip(*own, strict=True)))
    return each._replace(baseline=mean)


def _baseline(answers: NDArray[np.int64], number: int) -> Baseline:
    """With one example of each label added, so that no probability is zero."""
    counts = np.bincount(answers, minlength=number)
    nll = -np.log(counts[answers] / (len(answers) - 1 + number))
    return Baseline(float(counts.max() / len(answers)), float(nll.mean()))


def threshold(each: Outcomes, wanted: float = WANTED) -> Threshold | None:
    """The lowest confidence such that at least ``wanted`` of the answers with no less of it are right."""
    levels = np.unique(each.confidence)
    for level in levels:
        covered = each.confidence >= level
        right = int(each.correct[covered].sum())
        if int(covered.sum()) >= FEWEST and right >= wanted * int(covered.sum()):
            return Threshold(float(level), int(covered.sum()), right)
    return None


def _rank_error(probs: Floats, answers: NDArray[np.int64]) -> tuple[float, float]:
    """Of the median of each row's probabilities; and of the median label."""
    median = (np.cumsum(probs, 1) < 0.5).sum(1)
    constant = np.abs(np.arange(probs.shape[1])[:, None] - answers).mean(1).min()
    return float(np.abs(median - answers).mean()), float(constant)
