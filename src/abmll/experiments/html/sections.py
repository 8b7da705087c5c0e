"""The tables of the report. Each takes the methods it shows side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import risk_coverage
from abmll.experiments.statistics import estimate
from abmll.experiments.tables import OF_TASKS, Cell, Column, Row, Table, cells, number

FURTHER = (
    Column("ece_equal_mass", "ECE, equal mass", "lower", "the same in 10 bins of equal counts"),
    Column("mean_abs_confidence_gap", "Confidence gap", "lower", "mean |confidence - correct|: no calibration error"),
)
PER_TASK = tuple(column for column in OF_TASKS if column.key in ("accuracy", "nll", "ece"))
COVERAGES = (0.25, 0.5, 0.75, 1.0)
COSTS = {
    "seconds": "Seconds",
    "episodes": "Episodes",
    "gradient_steps": "Gradient steps",
    "tokens": "Tokens",
    "rate": "Tokens / s",
}
BASELINES = {"majority": "Best constant answer", "chance": "Chance"}
UNCERTAINTIES = {"entropy": "Entropy ↑", "mutual_information": "Mutual information ↑"}


def _side_by_side(title: str, corner: str, methods: Sequence[Method], columns: Mapping[str, list[Cell]]) -> Table:
    """A row a method; ``columns`` are by heading, with a cell a method."""
    rows = [Row(m.label, [own[i] for own in columns.values()], m.index) for i, m in enumerate(methods)]
    return Table(title, corner, list(columns), rows)


def _known(found: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[Column]:
    """Without metrics that are newer than all of these numbers."""
    return [column for column in columns if any(column.key in own for own in found)]


def _cells(found: Sequence[Mapping[str, Any]], column: Column) -> list[Cell]:
    return cells([own.get(column.key) for own in found], column.better, column.digits)


def headline(methods: Sequence[Method]) -> Table:
    """Each method's means over tasks, and below them the baselines, which are the same for all methods."""
    shown = _known([method.mean for method in methods], OF_TASKS)
    columns = {one.heading: _cells([method.mean for method in methods], one) for one in shown}
    table = _side_by_side("Mean over tasks", "Method", methods, columns)
    empty = [Cell("")] * (len(shown) - 1)
    baselines = [Row(label, [Cell(number(methods[0].mean.get(key))), *empty]) for key, label in BASELINES.items()]
    return replace(table, rows=table.rows + baselines, helps=[one.help for one in shown])


def every_metric(methods: Sequence[Method], place: Literal["mean", "pooled"]) -> Table:
    """One row a metric, one column a method, of means over tasks or of values over all examples."""
    found = [method.mean if place == "mean" else method.pooled for method in methods]
    rows = [Row(one.heading, _cells(found, one)) for one in _known(found, (*OF_TASKS, *FURTHER))]
    labels, indices = [method.label for method in methods], [method.index for method in methods]
    return Table("Every metric", "Metric", labels, rows, methods=indices)


def paired_differences(methods: Sequence[Method], reference: Method) -> Table:
    """The reference minus each other method on the same tasks: mean over tasks and its standard error.

    Not of AUROC, which some tasks lack, nor of ECE, whose bias differs between methods.
    """
    of_tasks = [metrics for method in methods for metrics in method.tasks.values()]
    shown = _known(of_tasks, [column for column in OF_TASKS if column.key not in ("auroc", "ece")])
    rows = []
    for method in (method for method in methods if method is not reference):
        differences = [_difference(reference.tasks, method.tasks, column) for column in shown]
        rows.append(Row(f"against {method.label}", differences, method.index))
    title = f"{reference.label} minus the others, task by task"
    return Table(title, "Mean difference", [column.heading for column in shown], rows)


def _difference(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], column: Column) -> Cell:
    pairs = [(one[task].get(column.key), other[task].get(column.key)) for task in one if task in other]
    values = [mine - its for mine, its in pairs if mine is not None and its is not None]
    mean, error = estimate(values) if values else (None, None)
    text = number(mean, column.digits, sign=True)
    return Cell(text if error is None else f"{text} ± {number(error, column.digits)}")


def per_task(methods: Sequence[Method]) -> Table:
    """Every task's size, best constant answer, accuracy, NLL and ECE, methods side by side."""
    rows = []
    for name in dict.fromkeys(task for method in methods for task in method.tasks):
        known = [method.tasks.get(name, {}) for method in methods]
        about = next(metrics for metrics in known if metrics)
        row = [Cell(number(about.get("num_examples"), 0)), Cell(number(about.get("majority")))]
        for column in PER_TASK:
            row += _cells(known, column)
        rows.append(Row(name, row))
    return Table(
        "Task by task",
        "Task",
        ["Examples", "Constant", *[method.label for method in methods] * len(PER_TASK)],
        rows,
        groups=["", "", *(column.heading for column in PER_TASK for _ in methods)],
        methods=[None, None, *[method.index for method in methods] * len(PER_TASK)],
    )


def selective_error(methods: Sequence[Method]) -> Table:
    """Error rate when only the most confident 25, 50, 75 and 100 % are answered; of methods with predictions."""
    columns = {f"{share:.0%}": cells([_risk(method, share) for method in methods], "lower") for share in COVERAGES}
    return _side_by_side("Error rate when only part is answered", "Most confident", methods, columns)


def _risk(method: Method, share: float) -> float:
    assert method.outcomes is not None
    coverage, risk = risk_coverage(method.outcomes.confidence, method.outcomes.correct)
    return float(risk[np.searchsorted(coverage, share - 1e-9)])


def out_of_distribution(methods: Sequence[Method]) -> Table:
    """How well each uncertainty tells out-of-distribution inputs apart."""
    columns = {
        heading: cells([method.ood.get(name) for method in methods], "higher")
        for name, heading in UNCERTAINTIES.items()
    }
    return _side_by_side("AUROC of out-of-distribution inputs", "Method", methods, columns)


def cost(methods: Sequence[Method]) -> Table:
    """What training took: any of episodes, seconds, gradient steps and tokens."""
    values = [{**method.cost, "rate": _rate(method.cost)} for method in methods]
    columns = {
        heading: [Cell(number(own.get(key), 0)) for own in values]
        for key, heading in COSTS.items()
        if any(own.get(key) is not None for own in values)
    }
    return _side_by_side("Cost of training", "Method", methods, columns)


def _rate(spent: Mapping[str, float]) -> float | None:
    seconds, tokens = spent.get("seconds"), spent.get("tokens")
    return tokens / seconds if seconds and tokens else None
