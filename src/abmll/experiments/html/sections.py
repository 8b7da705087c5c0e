"""The tables of the report. Each takes the methods it shows side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from abmll.experiments.html.reading import Method
from abmll.experiments.metrics import risk_coverage
from abmll.experiments.tables import COLUMNS, OF_TASKS, Cell, Column, Row, Table, cells, number

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


def headline(methods: Sequence[Method]) -> Table:
    """Each method's means over tasks, and below them the baselines, which are the same for all methods."""
    columns = [cells([method.mean.get(column.key) for method in methods], column.better) for column in OF_TASKS]
    rows = _rows(methods, columns)
    for key, label in BASELINES.items():
        known = {"accuracy": number(methods[0].mean.get(key))}
        rows.append(Row(label, [Cell(known.get(column.key, "")) for column in OF_TASKS]))
    headers, helps = [column.heading for column in OF_TASKS], [column.help for column in OF_TASKS]
    return Table("Mean over tasks", "Method", headers, rows, helps=helps)


def _rows(methods: Sequence[Method], columns: Sequence[Sequence[Cell]]) -> list[Row]:
    """A row a method, of columns of as many cells."""
    return [
        Row(method.label, list(own), method.index)
        for method, own in zip(methods, zip(*columns, strict=True), strict=True)
    ]


def every_metric(methods: Sequence[Method], place: Literal["mean", "pooled"]) -> Table:
    """One row a metric, one column a method, of means over tasks or of values over all examples."""
    found = [method.mean if place == "mean" else method.pooled for method in methods]
    rows = [
        Row(column.heading, cells([own.get(column.key) for own in found], column.better))
        for column in (*OF_TASKS, *FURTHER)
    ]
    labels, indices = [method.label for method in methods], [method.index for method in methods]
    return Table("Every metric", "Metric", labels, rows, methods=indices)


def paired_differences(methods: Sequence[Method], reference: Method) -> Table:
    """The reference minus each other method on the same tasks: mean over tasks and its standard error."""
    shown = [column for column in OF_TASKS if column.key != "auroc"]
    rows = [
        Row(
            f"against {method.label}",
            [_difference(reference.tasks, method.tasks, column.key) for column in shown],
            method.index,
        )
        for method in methods
        if method is not reference
    ]
    title = f"{reference.label} minus the others, task by task"
    return Table(title, "Mean difference", [column.heading for column in shown], rows)


def _difference(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], key: str) -> Cell:
    values = np.array([one[task][key] - other[task][key] for task in one if task in other])
    if len(values) < 2:
        return Cell(number(float(values[0]) if len(values) else None, sign=True))
    return Cell(f"{number(values.mean(), sign=True)} ± {number(values.std(ddof=1) / np.sqrt(len(values)))}")


def per_task(methods: Sequence[Method]) -> Table:
    """Every task's size, best constant answer, accuracy, NLL and ECE, methods side by side."""
    rows = []
    for name in dict.fromkeys(task for method in methods for task in method.tasks):
        known = [method.tasks.get(name, {}) for method in methods]
        about = next(metrics for metrics in known if metrics)
        row = [Cell(number(about.get("num_examples"), 0)), Cell(number(about.get("majority")))]
        for column in PER_TASK:
            row += cells([metrics.get(column.key) for metrics in known], column.better)
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
    risks = []
    for method in methods:
        assert method.outcomes is not None
        coverage, risk = risk_coverage(method.outcomes.confidence, method.outcomes.correct)
        risks.append([float(risk[np.searchsorted(coverage, c - 1e-9)]) for c in COVERAGES])
    columns = [cells(column, "lower") for column in zip(*risks, strict=True)]
    headers = [f"{coverage:.0%}" for coverage in COVERAGES]
    return Table("Error rate when only part is answered", "Most confident", headers, _rows(methods, columns))


def out_of_distribution(methods: Sequence[Method]) -> Table:
    """How well each uncertainty tells out-of-distribution inputs apart."""
    columns = [cells([method.ood.get(name) for method in methods], "higher") for name in UNCERTAINTIES]
    title = "AUROC of out-of-distribution inputs"
    return Table(title, "Method", list(UNCERTAINTIES.values()), _rows(methods, columns))


def cost(methods: Sequence[Method]) -> Table:
    """What training took: any of episodes, seconds, gradient steps and tokens."""
    values = [{**method.cost, "rate": _rate(method.cost)} for method in methods]
    shown = [key for key in COSTS if any(own.get(key) is not None for own in values)]
    columns = [[Cell(number(own.get(key), 0)) for own in values] for key in shown]
    return Table("Cost of training", "Method", [COSTS[key] for key in shown], _rows(methods, columns))


def _rate(spent: Mapping[str, float]) -> float | None:
    seconds, tokens = spent.get("seconds"), spent.get("tokens")
    return tokens / seconds if seconds and tokens else None
