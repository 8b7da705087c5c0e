"""A comparison as text: Markdown and LaTeX tables of what ``comparison.json`` holds, and its sheets beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from abmll.common.files import write_text
from abmll.experiments.sheets import COLUMNS, Column, Document, csv_text, method_rows, task_rows


class Grid(NamedTuple):
    """A table in words: a heading for every column, and rows of as many cells."""

    title: str
    headings: list[str]
    rows: list[list[str]]


COSTS = {
    "gradient_steps": "Gradient steps",
    "forward_passes": "Forward passes",
    "tokens": "Tokens",
    "seconds": "Seconds",
    "peak_memory_mb": "Peak memory, MB",
    "evaluation_forward_passes": "Forward passes, unseen tasks",
    "evaluation_tokens": "Tokens, unseen tasks",
    "evaluation_seconds": "Seconds, unseen tasks",
    "evaluation_peak_memory_mb": "Peak memory, unseen tasks, MB",
}
UNKNOWN = "\N{EN DASH}"
MANY = 4  # methods, of which a note names no more


def write_tables(comparison: Document, folder: Path) -> list[Path]:
    """Write ``table.md``, ``table.csv``, ``tasks.csv`` and ``table.tex`` into the folder; returns their paths."""
    grids = [headline(comparison), *filter(None, [against_reference(comparison)]), cost(comparison)]
    texts = {
        "table.md": markdown(comparison, grids),
        "table.csv": csv_text(method_rows(comparison)),
        "tasks.csv": csv_text(task_rows(comparison)),
        "table.tex": latex(grids[0], notes(comparison)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def headline(comparison: Document) -> Grid:
    """Every method's metrics: means over seeds with standard errors, the best in bold, and the mean rank.

    Methods that lack seeds are not among the best: their mean is of other runs than that of the rest.
    The pooled calibration error has its 95 % interval too, where predictions are there.
    """
    methods = comparison["methods"]
    headings = [f"{column.heading} {'↑' if column.higher else '↓'}" for column in COLUMNS]
    whole = {n: row for n, row in enumerate(methods.values()) if len(row["seeds"]) == len(comparison["seeds"])}
    best = {column: _best({n: row[column.place][column.key] for n, row in whole.items()}, column) for column in COLUMNS}
    rows = []
    for index, row in enumerate(methods.values()):
        cells = [_value(row, column, index in best[column]) for column in COLUMNS]
        ranks = [_digits(row["ranks"].get(name), 1) for name in ("accuracy", "nll")]
        rows.append([row["label"], *cells, " / ".join(ranks), str(len(row["seeds"]))])
    return Grid("Mean over unseen tasks", ["Method", *headings, "Rank (accuracy / NLL)", "Seeds"], rows)


def against_reference(comparison: Document) -> Grid | None:
    """Each method minus the reference, with 95 % intervals and p-values; None where there is nothing to compare."""
    reference = comparison["reference"]
    compared = {key: row for key, row in comparison["methods"].items() if row["statistics"].get("differences")}
    if reference is None or not compared:
        return None
    columns = [column for column in COLUMNS if column.statistic is not None]
    rows = []
    for row in compared.values():
        found = [row["statistics"]["differences"][column.statistic] for column in columns]
        rows.append([row["label"], *map(_interval, found)])
    title = f"Minus {comparison['methods'][reference]['label']}: difference [95 % interval], p"
    return Grid(title, ["Method", *(column.heading for column in columns)], rows)


def cost(comparison: Document) -> Grid:
    """What training and the unseen tasks took, on average over the seeds."""
    methods = comparison["methods"].values()
    rows = [[row["label"], *(_digits(row["cost"].get(name), 0) for name in COSTS)] for row in methods]
    return Grid("Cost of a seed", ["Method", *COSTS.values()], rows)


def notes(comparison: Document) -> list[str]:
    """What a reader of the numbers has to know."""
    methods = comparison["methods"].values()
    mean = next(iter(methods))["mean"]
    seeds = ", ".join(map(str, comparison["seeds"]))
    lines = [
        f"Suite {comparison['suite']}: mean over {mean['num_tasks']} unseen tasks, {mean['num_examples']:,} questions; "
        f"seeds {seeds}; ± is the standard error over seeds.",
        f"Best constant answer {_digits(mean['majority'])}, chance {_digits(mean['chance'])}"
        + (
            "."
            if comparison["uniform_nll"] is None
            else f"; NLL of the uniform prediction {comparison['uniform_nll']:.3f}."
        ),
    ]
    if any(row["statistics"] for row in methods):
        lines.append("Intervals, of 95 %: paired bootstrap over tasks and examples, 2,000 replicates.")
    if comparison["missing"]:
        lines.append(f"Missing tasks, not in these numbers: {', '.join(comparison['missing'])}.")
    if comparison["known_leaks"]:
        lines.append(f"Not quite unseen (see the suite): {', '.join(comparison['known_leaks'])}.")
    if cut := _counts(comparison, "truncated_prompts"):
        lines.append(f"Prompts that were too long and were cut in the middle, over all seeds: {cut}.")
    if left_out := _counts(comparison, "demonstrations_left_out"):
        lines.append(f"Demonstrations that did not fit before their question and were left out: {left_out}.")
    for row in (row for row in methods if len(row["machines"]) > 1):
        where = " and ".join(row["machines"])
        lines.append(f"{row['label']}: seeds on different machines ({where}), so without seconds and memory.")
    lines += [f"{one['method']}, seed {one['seed']}, failed: {one['error']}" for one in comparison["failures"]]
    return lines


def markdown(comparison: Document, grids: Sequence[Grid]) -> str:
    """All tables with the notes, as Markdown."""
    parts = [f"# {comparison['suite']}", "\n".join(f"- {line}" for line in notes(comparison))]
    for grid in grids:
        parts += [f"## {grid.title}", grid_markdown(grid)]
    return "\n\n".join(parts) + "\n"


def grid_markdown(grid: Grid) -> str:
    """One table as Markdown, without its title."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (grid.headings, *grid.rows)]
    rule = ["---", *["---:"] * (len(grid.headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def latex(grid: Grid, remarks: Sequence[str]) -> str:
    """One table for LaTeX (``booktabs``), the notes as comments above it."""
    comments = [f"% {_tex(line)}" for line in remarks]
    rows = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in (grid.headings, *grid.rows)]
    columns = "l" + "r" * (len(grid.headings) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*comments, *body, r"\end{tabular}"]) + "\n"


def _value(row: Document, column: Column, best: bool) -> str:
    error = row[f"{column.place}_errors"][column.key]
    text = _digits(row[column.place][column.key]) + (f" ± {_digits(error)}" if error is not None else "")
    interval = row["statistics"].get("intervals", {}).get(column.statistic) if column.with_interval else None
    between = "" if interval is None else f" [{_digits(interval[1])}, {_digits(interval[2])}]"
    return (f"**{text}**" if best else text) + between


def _counts(comparison: Document, name: str) -> str:
    """What was counted of each method, where it was anything; methods with the same count together."""
    alike: dict[int, list[str]] = {}
    for row in comparison["methods"].values():
        if row[name]:
            alike.setdefault(row[name], []).append(row["label"])
    return "; ".join(f"{count:,} ({_named(labels)})" for count, labels in alike.items())


def _named(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= MANY else f"each of {len(labels)} methods"


def _best(values: Mapping[int, float | None], column: Column) -> set[int]:
    """The places of the best value as displayed; none where nothing is compared."""
    known = {index: round(value, 3) for index, value in values.items() if value is not None}
    if len(known) < 2:
        return set()
    top = max(known.values()) if column.higher else min(known.values())
    return {index for index, value in known.items() if value == top}


def _interval(found: Mapping[str, float]) -> str:
    value, low, high = (f"{found[name]:+.3f}".replace("-", "\N{MINUS SIGN}") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}], {found['p']:.3f}"


def _digits(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


_TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    UNKNOWN: "--",
    "\N{MINUS SIGN}": "$-$",
}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _tex(text: str) -> str:
    bold = text.startswith("**") and text.endswith("**")
    escaped = "".join(_TEX.get(character, character) for character in (text[2:-2] if bold else text))
    return rf"\textbf{{{escaped}}}" if bold else escaped
