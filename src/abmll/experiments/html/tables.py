"""The tables of the report and of the terminal: the same rows, as HTML cells or as plain text."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from abmll.experiments.metrics import Outcomes, risk_coverage


class Metric(NamedTuple):
    """How a value of `abmll.experiments.metrics` is shown."""

    key: str
    label: str
    better: Literal["higher", "lower"]
    help: str

    @property
    def heading(self) -> str:
        """The label with the direction of better values, such as ``NLL ↓``."""
        return f"{self.label} {'↑' if self.better == 'higher' else '↓'}"


HEADLINE = (
    Metric("accuracy", "Accuracy", "higher", "share of examples answered rightly"),
    Metric("nll", "NLL", "lower", "mean -log probability of the right answer, in nats"),
    Metric("brier", "Brier", "lower", "squared error of the probabilities, summed over options (0 to 2)"),
    Metric("ece", "ECE", "lower", "expected calibration error, 15 equal-width bins over all examples of a task"),
    Metric("aurc", "AURC", "lower", "error rate averaged over all coverages, most confident examples first"),
    Metric("auroc", "AUROC", "higher", "chance that a right answer is more confident than a wrong one"),
)
FURTHER = (
    Metric("ece_equal_mass", "ECE, equal mass", "lower", "the same in 10 bins of equal counts"),
    Metric("mean_abs_confidence_gap", "Confidence gap", "lower", "mean |confidence - correct|: no calibration error"),
)
PER_TASK = (HEADLINE[0], HEADLINE[1], HEADLINE[3])
COVERAGES = (0.25, 0.5, 0.75, 1.0)
COSTS = {
    "seconds": "Seconds",
    "episodes": "Episodes",
    "gradient_steps": "Gradient steps",
    "tokens": "Tokens",
    "rate": "Tokens / s",
}
BASELINES = {"majority": "Best constant answer", "chance": "Chance"}


class Cell(NamedTuple):
    """One value as text; `best` where no other method of its row or column does better."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A table's row; `method` is the index that gives its colour, None for a row of no method."""

    label: str
    cells: list[Cell]
    method: int | None = None


@dataclass(frozen=True)
class Table:
    """A titled table. `groups` are (heading, number of columns) above the headers; `methods` colours the headers."""

    title: str
    corner: str
    headers: list[str]
    rows: list[Row]
    note: str = ""
    groups: tuple[tuple[str, int], ...] = ()
    methods: tuple[int | None, ...] = ()
    helps: tuple[str, ...] = ()

    @property
    def starts(self) -> set[int]:
        """The columns of values that open a group; none without groups."""
        ends = np.cumsum([span for _, span in self.groups]) - 1
        return {int(end) for end in ends[:-1]} - {0}

    def text(self) -> str:
        """The table for a terminal, with ``*`` after the best values."""
        mark = any(cell.best for row in self.rows for cell in row.cells)
        rows = [[r.label, *(c.text + ("*" if c.best else " " if mark else "") for c in r.cells)] for r in self.rows]
        return render_table([self.corner, *(h + " " * mark for h in self._headers_in_full())], rows)

    def _headers_in_full(self) -> list[str]:
        """The headers with those of their groups in one line; of a single method's columns the groups' alone."""
        groups = [heading for heading, span in self.groups for _ in range(span)][1:] or [""] * len(self.headers)
        alone = len({method for method in self.methods if method is not None}) < 2
        return [
            header if not group else group if alone else f"{group} {header}"
            for group, header in zip(groups, self.headers, strict=True)
        ]


def printable(text: str) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(text: str) -> int:
    """Columns a terminal needs: two for a wide East Asian character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def render_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: first column to the left, the others to the right, a rule under the headers.

    Raises ValueError where a row's length differs from that of the headers.
    """
    table = [[printable(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(_width(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        padding = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0] + padding[0], *(p + c for p, c in zip(padding[1:], row[1:], strict=True))]))
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:]))


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A value with fixed digits and a true minus sign; an en dash where it is not known."""
    if value is None or not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def best_of(values: Sequence[float | None], better: str, digits: int = 3) -> list[bool]:
    """Which values are best as displayed (several, where they look equal); none where nothing is compared."""
    rounded = [None if v is None or not np.isfinite(v) else round(v, digits) for v in values]
    known = [v for v in rounded if v is not None]
    if len(values) < 2 or not known:
        return [False] * len(values)
    top = max(known) if better == "higher" else min(known)
    return [v == top for v in rounded]


def _cells(values: Sequence[float | None], better: str) -> list[Cell]:
    return [Cell(number(v), best) for v, best in zip(values, best_of(values, better), strict=True)]


def headline(means: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric] = HEADLINE) -> Table:
    """Methods side by side: `means` maps each label to its mean over tasks, or to any other dict of metrics."""
    columns = [_cells([mean.get(m.key) for mean in means.values()], m.better) for m in metrics]
    rows = [Row(label, [column[i] for column in columns], i) for i, label in enumerate(means)]
    first = next(iter(means.values()))  # the baselines are the same for every method: they know the examples only
    for key, label in BASELINES.items():
        known = {"accuracy": number(first.get(key))}
        rows.append(Row(label, [Cell(known.get(m.key, "")) for m in metrics]))
    headers, helps = [m.heading for m in metrics], tuple(m.help for m in metrics)
    return Table("Mean over tasks", "Method", headers, rows, helps=helps)


def every_metric(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a metric, one column a method: the long form of `headline`, for means or for pooled values."""
    rows = [
        Row(m.heading, _cells([column.get(m.key) for column in columns.values()], m.better))
        for m in (*HEADLINE, *FURTHER)
    ]
    return Table("Every metric", "Metric", list(columns), rows, methods=tuple(range(len(columns))))


def paired_differences(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]], reference: str) -> Table:
    """`reference` minus each other method on the same tasks: mean and its standard error; tasks[label][task][key]."""
    shown = [m for m in HEADLINE if m.key != "auroc"]
    rows = []
    for index, label in enumerate(tasks):
        if label != reference:
            cells = [Cell(_difference(tasks[reference], tasks[label], m.key)) for m in shown]
            rows.append(Row(f"against {label}", cells, index))
    return Table(f"{reference} minus the others, task by task", "Mean difference", [m.heading for m in shown], rows)


def _difference(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], key: str) -> str:
    values = np.array([one[task][key] - other[task][key] for task in one if task in other])
    if len(values) < 2:
        return number(float(values[0]) if len(values) else None, sign=True)
    return f"{number(values.mean(), sign=True)} ± {number(values.std(ddof=1) / np.sqrt(len(values)))}"


def per_task(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Every task's size, baseline, accuracy, NLL and ECE, methods side by side; tasks[label][task][key]."""
    labels = list(tasks)
    names = list(dict.fromkeys(task for of_method in tasks.values() for task in of_method))
    rows = []
    for name in names:
        known = [tasks[label].get(name, {}) for label in labels]
        about = next(metrics for metrics in known if metrics)
        cells = [Cell(number(about.get("num_examples"), 0)), Cell(number(about.get("majority")))]
        for metric in PER_TASK:
            cells += _cells([metrics.get(metric.key) for metrics in known], metric.better)
        rows.append(Row(name, cells))
    return Table(
        "Task by task",
        "Task",
        ["Examples", "Constant", *labels * len(PER_TASK)],
        rows,
        groups=(("", 1), ("", 2), *((m.heading, len(labels)) for m in PER_TASK)),
        methods=(None, None, *list(range(len(labels))) * len(PER_TASK)),
    )


def selective_error(by_method: Mapping[str, tuple[int, Outcomes]]) -> Table:
    """Error rate when only the most confident 25, 50, 75 and 100 % are answered; label -> (colour index, outcomes)."""
    risks = []
    for _, each in by_method.values():
        coverage, risk = risk_coverage(each.confidence, each.correct)
        risks.append([float(risk[np.searchsorted(coverage, c - 1e-9)]) for c in COVERAGES])
    columns = [_cells(column, "lower") for column in zip(*risks, strict=True)]
    rows = [Row(label, [c[i] for c in columns], method) for i, (label, (method, _)) in enumerate(by_method.items())]
    return Table("Error rate when only part is answered", "Most confident", [f"{c:.0%}" for c in COVERAGES], rows)


def ood(aurocs: Mapping[str, tuple[int, Mapping[str, float | None]]]) -> Table:
    """How well each uncertainty tells out-of-distribution inputs apart; label -> (colour index, AUROC by uncertainty)."""
    headings = {"entropy": "Entropy ↑", "mutual_information": "Mutual information ↑"}
    columns = [_cells([own.get(name) for _, own in aurocs.values()], "higher") for name in headings]
    rows = [Row(label, [c[i] for c in columns], method) for i, (label, (method, _)) in enumerate(aurocs.items())]
    return Table("AUROC of inputs of another task", "Method", list(headings.values()), rows)


def cost(costs: Mapping[str, tuple[int, Mapping[str, float]]]) -> Table:
    """What training took; label -> (colour index, cost with any of episodes, seconds, gradient_steps, tokens)."""
    values = {label: {**value, "rate": _rate(value)} for label, (_, value) in costs.items()}
    shown = {key: heading for key, heading in COSTS.items() if any(v.get(key) is not None for v in values.values())}
    rows = [
        Row(label, [Cell(number(values[label].get(key), 0)) for key in shown], method)
        for label, (method, _) in costs.items()
    ]
    return Table("Cost of training", "Method", list(shown.values()), rows)


def _rate(value: Mapping[str, float]) -> float | None:
    seconds, tokens = value.get("seconds"), value.get("tokens")
    return tokens / seconds if seconds and tokens else None
