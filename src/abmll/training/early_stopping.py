"""Which evaluation is the best, and whether training should stop: functions of the lines of validation.jsonl alone."""

from collections.abc import Sequence

from abmll.common.config import ValidationConfig
from abmll.common.documents import Document


def best_row(rows: Sequence[Document], metric: str) -> Document | None:
    """The best evaluation, the earliest of equals: the lowest nll or the highest accuracy. None where there is none."""
    return min(rows, key=lambda row: _cost(row, metric), default=None)


def is_over(rows: Sequence[Document], config: ValidationConfig) -> bool:
    """Whether the patience is used up."""
    patience = config.early_stopping_patience
    if patience is None:
        return False
    return without_improvement(rows, config.metric_for_best_model, config.early_stopping_threshold) >= patience


def without_improvement(rows: Sequence[Document], metric: str, threshold: float) -> int:
    """How many evaluations at the end of ``rows`` were not better than all before them by more than ``threshold``.

    As transformers' ``EarlyStoppingCallback`` counts: each is compared with the best so far, however small that one's
    own improvement was.
    """
    best, count = float("inf"), 0
    for row in rows:
        cost = _cost(row, metric)
        count = 0 if best - cost > threshold else count + 1
        best = min(best, cost)
    return count


def _cost(row: Document, metric: str) -> float:
    return row[metric] if metric == "nll" else -row[metric]
