"""The paper's numbers beside those of a comparison: its metrics under its names, and what has the same formula here.

``published.yaml`` has them, by suite and base model. They are shown and never computed with.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from abmll.common.documents import Document
from abmll.experiments.tables import Cell, Row, Table, number

FILE = Path(__file__).with_name("published.yaml")


@cache
def published() -> Mapping[str, Any]:
    """What the file says."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def beside_published(comparison: Document) -> Table | None:
    """Rows that the paper has numbers of, each metric as it came out and as published.

    None where the paper has no numbers of this suite with this base model and with all training examples. The title
    says how many tasks are missing here.
    """
    table = _table_of(comparison["suite"])
    if table is None:
        return None
    settings = comparison["settings"]
    if table["model"] not in (None, settings.get("model")) or settings.get("limit_train") is not None:
        return None
    metrics = published()["metrics"]
    shown = {key: one for key, one in metrics.items() if any(key in row for row in table["rows"].values())}
    rows = []
    for key, own in table["rows"].items():
        if key in comparison["methods"]:
            row = comparison["methods"][key]
            pairs = [(_here(row, one), _as_printed(own.get(name))) for name, one in shown.items()]
            rows.append(Row(row["label"], [Cell(text) for pair in pairs for text in pair]))
    headers = [f"{one['name']}, {which}" for one in shown.values() for which in ("here", "published")]
    model = "" if table["model"] else "; base model not stated"
    count = len(comparison["missing"])
    missing = f"; {count} of its tasks missing here" if count else ""
    return Table(f"Published numbers ({table['source']}{model}{missing})", "Method", headers, rows) if rows else None


def _table_of(suite: str) -> Mapping[str, Any] | None:
    return next((table for table in published()["tables"] if table["suite"] == suite), None)


def _here(row: Document, metric: Mapping[str, Any]) -> str:
    """The mean over tasks of the metric with the same formula, on the paper's scale."""
    value = row["mean"].get(metric["formula"])
    return number(None if value is None else metric["scale"] * value, 1 if metric["scale"] > 1 else 3)


def _as_printed(value: Any) -> str:
    """A number as it stands in the file, or a range; an en dash where there is none."""
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return "\N{EN DASH}" if value is None else str(value)
