"""How far the rows of a comparison, and their differences from the reference, may be chance.

Means over tasks have Student's interval over the tasks, each of which counts with its mean over seeds: it asks what
other tasks of the kind would say. Of calibration errors within a task only the debiased one has statistics, because the
bias of ECE depends on how sharp a method is, and would be taken for a difference. The pooled calibration error is no
mean over tasks: its statistics come from predictions (``bootstrap``).

The statistics of a row are ``{"intervals": {metric: [value, low, high]}, "differences": {metric: an Interval's
fields}}``, None where an end does not exist.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from abmll.common.documents import Document
from abmll.experiments.bootstrap import MIN_TASKS, bootstrap, difference, interval, make_sample
from abmll.experiments.statistics import t_interval

MEANS = ("accuracy", "nll", "brier", "squared_ce")
POOLED = "pooled_ece"
Answers = Mapping[int, Mapping[str, Sequence[Document]]]  # a method's predictions, by seed and task


def of_means(rows: Mapping[str, Document], seeds: Collection[int], reference: str) -> dict[str, Document]:
    """The statistics of ``MEANS`` for the rows that have all ``seeds``, but for metrics that a row does not know."""
    known = {key: _by_metric(row["tasks"]) for key, row in rows.items() if len(row["seeds"]) == len(seeds)}
    found: dict[str, Document] = {}
    for key, own in known.items():
        found[key] = {"intervals": {name: t_interval(list(tasks.values()))[:3] for name, tasks in own.items()}}
        if reference in known and key != reference:
            pairs = {name: (own[name], known[reference][name]) for name in own if name in known[reference]}
            found[key]["differences"] = {
                name: t_interval([one[task] - other[task] for task in one])._asdict()
                for name, (one, other) in pairs.items()
            }
    return found


def _by_metric(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By metric that all tasks have, its value on each."""
    names = [name for name in MEANS if all(name in metrics for metrics in tasks.values())]
    return {name: {task: metrics[name] for task, metrics in tasks.items()} for name in names}


def of_pooled(answers: Mapping[str, Answers], reference: str) -> dict[str, Document]:
    """The statistics of the pooled calibration error for the rows whose predictions of all seeds are there."""
    seeds = {seed for own in answers.values() for seed in own}
    whole = {key: own for key, own in answers.items() if own.keys() == seeds and all(own.values())}
    tasks = list(next(iter(next(iter(whole.values())).values()))) if whole else []
    if len(tasks) < MIN_TASKS:
        return {}
    replicates = bootstrap(
        list(whole),
        [
            make_sample({key: {seed: own[seed][task] for seed in sorted(own)} for key, own in whole.items()})
            for task in tasks
        ],
    )
    found: dict[str, Document] = {key: {"intervals": {POOLED: interval(replicates, key)[:3]}} for key in whole}
    for key in whole if reference in whole else ():
        if key != reference:
            found[key]["differences"] = {POOLED: difference(replicates, key, reference)._asdict()}
    return found


def only_pooled(row: Document) -> dict[str, Document]:
    """The part of a row's statistics that nothing but predictions can give."""
    kept = row["statistics"] if len(row["tasks"]) >= MIN_TASKS else {}
    return {part: {POOLED: own[POOLED]} for part, own in kept.items() if POOLED in own}


def joined(*statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Document]:
    """The statistics of different metrics of one row together; the last ones win."""
    found: dict[str, Document] = {}
    for one in statistics:
        for part, own in one.items():
            found[part] = {**found.get(part, {}), **own}
    return found
