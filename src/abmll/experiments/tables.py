"""A table, made once and shown as Markdown, as HTML or as plain text; and the metrics' columns in all tables."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from abmll.common.errors import one_line

BAR = "\\|"  # a bar within a cell of Markdown


class Column(NamedTuple):
    """How tables show a metric of ``abmll.experiments.metrics``."""

    key: str
    label: str
    better: Literal["higher", "lower"]
    help: str
    place: Literal["mean", "pooled"] = "mean"  # the mean over tasks, or over all examples together
    digits: int = 3

    @property
    def name(self) -> str:
        """Its name among statistics and in CSV files."""
        return self.key if self.place == "mean" else f"pooled_{self.key}"

    @property
    def heading(self) -> str:
        """The label with the direction of better values, such as ``NLL ↓``."""
        return f"{self.label} {'↑' if self.better == 'higher' else '↓'}"


COLUMNS = (
    Column("accuracy", "Accuracy", "higher", "share of examples answered correctly"),
    Column("nll", "NLL", "lower", "mean -log probability of the correct answer, in nats"),
    Column("brier", "Brier", "lower", "squared error of the probabilities, summed over options (0 to 2)"),
    Column("ece", "ECE", "lower", "expected calibration error, 15 equal-width bins over all examples of a task"),
    Column(
        "squared_ce",
        "CE²",
        "lower",
        "debiased squared calibration error: on average not too large where examples are few, and below 0 by chance",
        digits=4,
    ),
    Column("ece", "Pooled ECE", "lower", "the same over all examples of all tasks together", "pooled"),
    Column("aurc", "AURC", "lower", "error rate averaged over all coverages, most confident examples first"),
    Column("auroc", "AUROC", "higher", "chance that a correct answer is more confident than a wrong one"),
)
OF_TASKS = tuple(column for column in COLUMNS if column.place == "mean")


class Cell(NamedTuple):
    """One value as text; ``best`` where no other method does better; ``note`` follows the marked text."""

    text: str
    best: bool = False
    note: str = ""


class Row(NamedTuple):
    """A table's row; ``method`` is the index that gives its colour, None for a row of no method."""

    label: str
    cells: list[Cell]
    method: int | None = None


@dataclass(frozen=True)
class Table:
    """A titled table; ``corner`` is the heading of the rows' labels.

    ``groups``, ``helps`` and ``methods`` have an entry a header, if any: a heading above it, which neighbours may
    share, an explanation, and the index of the method that gives its colour.
    """

    title: str
    corner: str
    headers: list[str]
    rows: list[Row]
    groups: Sequence[str] = ()
    helps: Sequence[str] = ()
    methods: Sequence[int | None] = ()

    @property
    def spans(self) -> list[tuple[str, int]]:
        """The groups' headings, each with the number of its columns."""
        return [(heading, len(list(same))) for heading, same in groupby(self.groups)]

    @property
    def starts(self) -> set[int]:
        """The columns that open a group, but for the first."""
        return {i for i in range(1, len(self.groups)) if self.groups[i] != self.groups[i - 1]}

    def text(self) -> str:
        """For a terminal, with ``*`` after the best values."""
        mark = any(cell.best for row in self.rows for cell in row.cells)
        rows = [[r.label, *(c.text + ("*" if c.best else " ") * mark + c.note for c in r.cells)] for r in self.rows]
        return render_table([self.corner, *(header + " " * mark for header in self._full_headers())], rows)

    def markdown(self) -> str:
        """As Markdown without the title, the best values in bold."""
        rows = [[self.corner, *self.headers], ["---", *["---:"] * len(self.headers)]]
        for row in self.rows:
            rows.append([row.label, *((f"**{c.text}**" if c.best else c.text) + c.note for c in row.cells)])
        return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in rows)

    def _full_headers(self) -> list[str]:
        """Each header after its group's; that of the group alone where all columns are of one method."""
        alone = len(set(self.methods) - {None}) < 2
        groups = self.groups or [""] * len(self.headers)
        pairs = zip(groups, self.headers, strict=True)
        return [(group if alone else f"{group} {header}") if group else header for group, header in pairs]


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A value with fixed digits and a true minus sign; an en dash where it is not known."""
    if value is None or not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def best_of(values: Sequence[float | None], better: str, digits: int = 3) -> list[bool]:
    """Which values are best as displayed (several, where they look equal); none where nothing is compared."""
    rounded = [None if v is None or not np.isfinite(v) else round(v, digits) for v in values]
    known = [v for v in rounded if v is not None]
    if len(known) < 2:
        return [False] * len(values)
    top = max(known) if better == "higher" else min(known)
    return [v == top for v in rounded]


def cells(values: Sequence[float | None], better: str, digits: int = 3) -> list[Cell]:
    """The values of one metric as cells, the best marked."""
    return [Cell(number(v, digits), best) for v, best in zip(values, best_of(values, better, digits), strict=True)]


def render_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: first column to the left, the others to the right, a rule under the headers.

    Raises ValueError where a row's length differs from that of the headers.
    """
    table = [[one_line(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(_width(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ["  ".join("-" * width for width in widths)]
    for row in table:
        padding = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0] + padding[0], *(p + c for p, c in zip(padding[1:], row[1:], strict=True))]))
    return "\n".join(line.rstrip() for line in (lines[1], lines[0], *lines[2:]))


def printable(text: str) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(text: str) -> int:
    """Columns a terminal needs: two for a wide East Asian character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
