"""The tables of a comparison, made of what ``comparison.json`` holds, and the Markdown and CSV files beside it."""

from pathlib import Path

from abmll.common.documents import Document
from abmll.common.files import write_text
from abmll.common.markdown_text import as_text
from abmll.experiments.budget import SMOKE
from abmll.experiments.published import beside_published
from abmll.experiments.sheets import csv_text, method_rows, task_rows
from abmll.experiments.tables import COLUMNS, Cell, Column, Row, Table, best_of, number

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
REHEARSED = "A rehearsal: a random model on generated tasks. No number here is a result."
SMALLEST = 0.001  # of the p-values that are told apart
MANY = 4  # methods, of which a note names no more


def write_tables(comparison: Document, folder: Path) -> list[Path]:
    """Write ``table.md``, ``table.csv`` and ``tasks.csv`` into the folder; returns their paths."""
    parts = [f"# {as_text(comparison['suite'])}", "\n".join(f"- {as_text(line)}" for line in notes(comparison))]
    shown = [headline(comparison), beside_published(comparison), against_reference(comparison), cost(comparison)]
    for table in filter(None, shown):
        parts += [f"## {table.title}", table.markdown()]
    texts = {
        "table.md": "\n\n".join(parts) + "\n",
        "table.csv": csv_text(method_rows(comparison)),
        "tasks.csv": csv_text(task_rows(comparison)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def headline(comparison: Document) -> Table:
    """Every method's metrics: means over seeds with standard errors, the best marked, and the mean rank.

    Methods that lack seeds are not among the best: their mean is of other runs than that of the rest. A metric that is
    newer than all rows has no column.
    The pooled calibration error has its 95 % interval too, where predictions are there.
    """
    methods = comparison["methods"].values()
    shown = [column for column in COLUMNS if any(column.key in row[column.place] for row in methods)]
    columns = [_cells(comparison, column) for column in shown]
    rows = []
    for index, row in enumerate(methods):
        ranks = " / ".join(number(row["ranks"].get(name), 1) for name in ("accuracy", "nll"))
        own = [column[index] for column in columns]
        rows.append(Row(row["label"], [*own, Cell(ranks), Cell(str(len(row["seeds"])))], index))
    headers = [*(column.heading for column in shown), "Rank (accuracy / NLL)", "Seeds"]
    return Table("Mean over unseen tasks", "Method", headers, rows)


def _cells(comparison: Document, column: Column) -> list[Cell]:
    """One metric of every method."""
    methods = list(comparison["methods"].values())
    values = [row[column.place].get(column.key) for row in methods]
    whole = [len(row["seeds"]) == len(comparison["seeds"]) for row in methods]
    best = best_of(
        [value if all_seeds else None for value, all_seeds in zip(values, whole, strict=True)],
        column.better,
        column.digits,
    )
    cells = []
    for row, value, is_best in zip(methods, values, best, strict=True):
        error = row[f"{column.place}_errors"].get(column.key)
        interval = row["statistics"].get("intervals", {}).get(column.name) if column.place == "pooled" else None
        text = number(value, column.digits) + ("" if error is None else f" ± {number(error, column.digits)}")
        cells.append(
            Cell(text, is_best, "" if interval is None else f" [{number(interval[1])}, {number(interval[2])}]")
        )
    return cells


def against_reference(comparison: Document) -> Table | None:
    """Each method minus the reference, with 95 % intervals and p-values; None where there is nothing to compare."""
    methods = comparison["methods"]
    compared = {row["label"]: found for row in methods.values() if (found := row["statistics"].get("differences"))}
    if comparison["reference"] is None or not compared:
        return None
    columns = [column for column in COLUMNS if any(column.name in found for found in compared.values())]
    rows = [
        Row(label, [Cell(difference_text(found, column.name, column.digits)) for column in columns])
        for label, found in compared.items()
    ]
    title = f"Minus {methods[comparison['reference']]['label']}: difference [95 % interval], p"
    return Table(title, "Method", [column.label for column in columns], rows)


def difference_text(differences: Document, metric: str, digits: int = 3) -> str:
    """A metric's difference, its interval and p; the value alone where it has no interval, as with one task."""
    found = differences.get(metric, {})
    value, low, high = (number(found.get(name), digits, sign=True) for name in ("value", "low", "high"))
    if found.get("p") is None:
        return value
    return f"{value} [{low}, {high}], {number(found['p']) if found['p'] >= SMALLEST else f'< {SMALLEST}'}"


def cost(comparison: Document) -> Table:
    """What training and the unseen tasks took, on average over the seeds."""
    methods = comparison["methods"].values()
    rows = [Row(row["label"], [Cell(number(row["cost"].get(name), 0)) for name in COSTS]) for row in methods]
    return Table("Cost of a seed", "Method", list(COSTS.values()), rows)


def notes(comparison: Document) -> list[str]:
    """What a reader of the numbers has to know."""
    methods = comparison["methods"].values()
    mean = next(iter(methods))["mean"]
    seeds = ", ".join(map(str, comparison["seeds"]))
    uniform = comparison["uniform_nll"]
    lines = [REHEARSED] if comparison["suite"].endswith(SMOKE) else []
    lines += [
        f"Suite {comparison['suite']}: mean over {mean['num_tasks']} unseen tasks, {mean['num_examples']:,} questions; "
        f"seeds {seeds}; ± is the standard error over seeds.",
        f"Best constant answer {number(mean['majority'])}, chance {number(mean['chance'])}"
        + ("." if uniform is None else f"; NLL of the uniform prediction {uniform:.3f}."),
    ]
    if any(row["statistics"] for row in methods):
        lines.append(
            "95 % intervals and p: Student's t over the tasks; of the pooled ECE, a bootstrap over tasks and examples."
        )
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
    return lines + [f"{one['method']}, seed {one['seed']}, failed: {one['error']}" for one in comparison["failures"]]


def _counts(comparison: Document, name: str) -> str:
    """What was counted of each method, where it was anything; methods with the same count together."""
    alike: dict[int, list[str]] = {}
    for row in comparison["methods"].values():
        if row[name]:
            alike.setdefault(row[name], []).append(row["label"])
    return "; ".join(
        f"{count:,} ({', '.join(labels) if len(labels) <= MANY else f'each of {len(labels)} methods'})"
        for count, labels in alike.items()
    )
