"""A comparison as CSV, in full precision: a row a method and metric, and a row a method and task."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from abmll.common.documents import Document
from abmll.experiments.tables import COLUMNS

FORMULA = ("=", "+", "-", "@", "\t", "\r")
NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?")


def method_rows(comparison: Document) -> list[Document]:
    """One row a method and metric: mean, standard error, interval, difference from the reference, rank."""
    rows = []
    for key, row in comparison["methods"].items():
        for column in COLUMNS:
            _, low, high = row["statistics"].get("intervals", {}).get(column.name, (None, None, None))
            difference = row["statistics"].get("differences", {}).get(column.name, {})
            rows.append(
                {
                    "method": key,
                    "metric": column.name,
                    "mean": row[column.place].get(column.key),
                    "standard_error": row[f"{column.place}_errors"].get(column.key),
                    "low": low,
                    "high": high,
                    "difference": difference.get("value"),
                    "difference_low": difference.get("low"),
                    "difference_high": difference.get("high"),
                    "p": difference.get("p"),
                    "rank": row["ranks"].get(column.name),
                    "seeds": len(row["seeds"]),
                    "missing_tasks": " ".join(comparison["missing"]),
                }
            )
    return rows


def task_rows(comparison: Document) -> list[Document]:
    """One row a method and task: metrics averaged over seeds, and the method's ranks on that task.

    Tasks that were missing have a row of each method without numbers.
    """
    rows = []
    for key, row in comparison["methods"].items():
        for name, metrics in row["tasks"].items():
            ranks = {f"{metric}_rank": own.get(name) for metric, own in row["task_ranks"].items()}
            rows.append({"method": key, "task": name, **metrics, **ranks})
        rows += [{"method": key, "task": name} for name in comparison["missing"]]
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]], separator: str = ",") -> str:
    """The rows as CSV under the keys of all of them; what a row lacks is empty. Texts are ``harmless``."""
    buffer, keys = io.StringIO(), list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\n")
    writer.writerow(map(harmless, keys))
    writer.writerows([harmless(row.get(key)) for key in keys] for row in rows)
    return buffer.getvalue()


def harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one, and is no number, gets a quote."""
    is_formula = isinstance(cell, str) and cell.startswith(FORMULA) and not NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell
