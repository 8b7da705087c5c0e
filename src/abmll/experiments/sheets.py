"""A comparison as CSV, in full precision: a row a method and metric, and a row a method and task."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Document = Mapping[str, Any]


class Column(NamedTuple):
    """A metric of the main table: where it is found, its heading, whether higher is better."""

    place: str  # "mean" over tasks or "pooled" over examples
    key: str
    heading: str
    higher: bool
    statistic: str | None = None  # its name in the bootstrap
    with_interval: bool = False  # beside the value, not only beside differences


COLUMNS = (
    Column("mean", "accuracy", "Accuracy", True, "accuracy"),
    Column("mean", "nll", "NLL", False, "nll"),
    Column("mean", "brier", "Brier", False, "brier"),
    Column("mean", "ece", "ECE", False, "ece"),
    Column("pooled", "ece", "Pooled ECE", False, "pooled_ece", with_interval=True),
    Column("mean", "aurc", "AURC", False),
    Column("mean", "auroc", "AUROC", True),
)


def method_rows(comparison: Document) -> list[dict[str, Any]]:
    """One row a method and metric, with all that is known of it, in full precision."""
    rows = []
    for key, row in comparison["methods"].items():
        for column in COLUMNS:
            found = row["statistics"].get("intervals", {}).get(column.statistic) or [None] * 3
            difference = row["statistics"].get("differences", {}).get(column.statistic, {})
            rows.append(
                {
                    "method": key,
                    "metric": column.statistic or column.key,
                    "mean": row[column.place][column.key],
                    "standard_error": row[f"{column.place}_errors"][column.key],
                    "low": found[1],
                    "high": found[2],
                    "difference": difference.get("value"),
                    "difference_low": difference.get("low"),
                    "difference_high": difference.get("high"),
                    "p": difference.get("p"),
                    "rank": row["ranks"].get(column.key) if column.place == "mean" else None,
                    "seeds": len(row["seeds"]),
                    "missing_tasks": " ".join(comparison["missing"]),
                }
            )
    return rows


def task_rows(comparison: Document) -> list[dict[str, Any]]:
    """One row a method and task: every metric, averaged over seeds, and the method's ranks on that task.

    Tasks that were missing have a row of each method without numbers.
    """
    rows = []
    for key, row in comparison["methods"].items():
        for name, metrics in row["tasks"].items():
            ranks = {f"{metric}_rank": own.get(name) for metric, own in row["task_ranks"].items()}
            rows.append({"method": key, "task": name} | dict(metrics) | ranks)
        rows += [{"method": key, "task": name} for name in comparison["missing"]]
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV under the first one's keys."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
