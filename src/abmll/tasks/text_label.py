"""Rows of ``text`` and ``label``, as most datasets have them: the options are the labels, the same for all rows.

A label is taken as its text, whatever its type. Rows without a text or a label are left out.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from abmll.common.errors import DataError
from abmll.tasks.columns import is_empty
from abmll.tasks.mapping import OPTION, listed_columns
from abmll.tasks.records import TEXT, label_text
from abmll.tasks.rows import Row
from abmll.tasks.types import MAX_OPTIONS

KEPT = ("id", "task", "family", "split")


def has_labels(columns: Collection[str]) -> bool:
    """Whether rows with these columns are of this form."""
    return "label" in columns and bool({*TEXT} & {*columns}) and not _has_options(columns)


def check_columns(columns: Sequence[str], where: str) -> None:
    """Raise ``DataError`` where a dataset's columns are neither of this form nor of ours."""
    remedy = f"say which it is: --column-mapping COLUMN={{}}. {listed_columns(columns)}"
    if not {*TEXT} & {*columns}:
        raise DataError(f"{where}: no column 'text' or 'input'; {remedy.format('text')}")
    if not {"label", "answer", "output"} & {*columns}:
        raise DataError(f"{where}: no column 'label'; {remedy.format('label')}")


def labelled(
    rows: Sequence[Row],
    classes: tuple[str, ...],
    where: str,
    require_answer: bool,
    say: Callable[[str], None],
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows with ``input`` and ``output``, and the labels: the ``classes``, or else the distinct ones, sorted.

    ``say`` is told how many rows are left out. Raises ``DataError`` where there are no rows, less than 2
    labels, or more than 200.
    """
    has_text = [(row, text) for row in rows if (text := _text(row)) is not None]
    kept = [(row, text) for row, text in has_text if not require_answer or not is_empty(row.values.get("label"))]
    for number, what in ((len(rows) - len(has_text), "text"), (len(has_text) - len(kept), "label")):
        if number:
            say(f"{where}: {number:,} row{'s' * (number > 1)} without a {what} left out")
    if not kept:
        raise DataError(f"{where}: no row has both a text and a label")
    own = [_own(row, text) for row, text in kept]
    found = {row.values["output"] for row in own if "output" in row.values}
    labels = classes or tuple(sorted(found))
    _refuse(labels, where)
    return own, labels


def _text(row: Row) -> Any:
    """The row's text, None where it has none."""
    return next((row.values[name] for name in TEXT if not is_empty(row.values.get(name))), None)


def _own(row: Row, text: Any) -> Row:
    """The row under our names."""
    label = row.values.get("label")
    values = {"input": text} | {key: row.values[key] for key in KEPT if key in row.values}
    return Row(row.where, values if is_empty(label) else values | {"output": label_text(label, row.where)})


def _refuse(labels: Sequence[str], where: str) -> None:
    if len(labels) == 1:
        raise DataError(f"{where}: all rows have the label {labels[0]!r}; at least 2 labels are needed")
    if len(labels) > MAX_OPTIONS:
        raise DataError(
            f"{where}: {len(labels)} labels, of which each would be an option; at most {MAX_OPTIONS} are possible"
        )


def _has_options(columns: Collection[str]) -> bool:
    return any(name == "options" or OPTION.fullmatch(name) for name in columns)
