"""Which column of a user's table has the texts, which one the labels; and what stands in them.

A column is named by the user, or guessed where there is one sensible choice: by its usual names, else because it is the
only one that can be meant.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from abmll.common.errors import DataError
from abmll.tasks.excel import as_text
from abmll.tasks.fields import text_of
from abmll.tasks.hub_dataset import load_hub
from abmll.tasks.hub_name import is_hub, parse_hub
from abmll.tasks.mapping import FLAG, OPTION, ColumnMapping, check_mapping, columns_of, listed_columns, refuse_missing
from abmll.tasks.records import LABEL, TEXT, is_missing
from abmll.tasks.rows import Row, read_rows
from abmll.tasks.types import MAX_OPTIONS

# Names of the first line are taken before those of the second.
TEXT_NAMES = (
    TEXT,
    ("sentence", "question", "message", "body", "content", "review", "comment", "description", "document", "query"),
)
LABEL_NAMES = (
    LABEL,
    ("labels", "class", "category", "categories", "target", "tag", "tags", "intent", "topic", "sentiment", "answer"),
)
WORDS = 3  # in texts, on average, where a column is known by nothing else


@dataclass(frozen=True)
class Table:
    """A user's table: its columns in their order, its rows as they are.

    ``mapping`` says which column has which part, ``classes`` what labels a column can have, where that is known.
    """

    where: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    mapping: ColumnMapping = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def values(self, column: str) -> list[Any]:
        """A column's cells; None for one that is empty or not there."""
        return [None if is_empty(value := row.values.get(column)) else value for row in self.rows]

    def named(self, *names: str) -> str | None:
        """The column that the mapping gives one of these names of ours."""
        return next((theirs for theirs, ours in self.mapping.items() if ours in names), None)

    def texts(self, column: str) -> list[str | None]:
        """A column's cells as texts, numbers too. Raises ``DataError`` for lists and other things that are no text."""
        return [
            None if value is None else _text(value, row, column)
            for value, row in zip(self.values(column), self.rows, strict=True)
        ]


class Columns(NamedTuple):
    """The names of two columns."""

    text: str
    label: str


def read_table(
    path: Path,
    column_mapping: ColumnMapping | None = None,
    *,
    split: str | None = None,
    announce: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Table:
    """The table in a file (.csv, .tsv, .jsonl, .json, .parquet, .xlsx), on standard input ("-"), or in a dataset.

    Args:
        path: a file, "-" or ``hf:NAME`` (``abmll.tasks.hub_name``).
        column_mapping: which column has which part, as ``{"sentence": "text", "category": "label"}``.
        split: of a dataset with several splits, the one that is read where the name says none.
        announce: told in one line each what is downloaded, and what is left out.
        quiet: show no progress of a download.

    Raises:
        DataError: it cannot be read, or has not got a column that is mapped.
    """
    mapping = dict(column_mapping or {})
    check_mapping(mapping)
    if is_hub(path):
        dataset = load_hub(parse_hub(path), announce, quiet)
        chosen = dataset.one_split(split)
        if len(dataset.splits) > 1:
            announce(f"{path}: used: {chosen}; left out: {', '.join(one for one in dataset.splits if one != chosen)}")
        columns, rows, classes = dataset.table(chosen, mapping)
        table = Table(f"{dataset.name._replace(split=None)}: {chosen}", columns, rows, mapping, classes)
    else:
        rows = tuple(read_rows(path, as_it_is=True))
        table = Table(rows[0].where.rsplit(":", 1)[0], columns_of(rows), rows, mapping)
    refuse_missing(mapping, table.columns, table.where, FLAG)
    return table


def is_task_file(path: Path, table: Table) -> bool:
    """Whether the table has the project's own columns (``abmll.tasks.fields``), or is CrossFit's without a header."""
    columns = {table.mapping.get(column, column) for column in table.columns}
    if any(name == "options" or OPTION.fullmatch(name) for name in columns):
        return True
    if path.suffix == ".tsv" and len(columns) == 2 and not {*chain(*TEXT_NAMES, *LABEL_NAMES)} & columns:
        return True
    return {"input", "output"} <= columns <= {"id", "input", "output", "split"}


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: white space, or nothing at all."""
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _text(value: Any, row: Row, column: str) -> str:
    if isinstance(value, list | tuple | dict | bytes):
        raise DataError(f"{row.where}: '{column}' is a {type(value).__name__}, not a text; choose another column")
    return text_of(Row(row.where, {column: as_text(value)}), column)


def find_columns(table: Table, text: str | None = None, label: str | None = None) -> Columns:
    """The columns of texts and labels: those that are named, or those that can be meant.

    Raises ``DataError`` where a named one is not there, or where none or several can be meant.
    """
    label = _named(table, LABEL, label) or _by_name(table, LABEL_NAMES, text)
    text = find_text(table, text, label)
    others = [name for name in table.columns if name != text]
    if label is None:
        label = others[0] if len(others) == 1 else _only(table, text, _can_be_labels)
    if label is None:
        known = listed_columns(table.columns)
        raise DataError(f"{table.where}: which column has the labels? Say --label NAME. {known}")
    if label == text:
        raise DataError(f"{table.where}: '{text}' cannot be both text and label; say --text NAME and --label NAME")
    return Columns(text, label)


def find_text(table: Table, text: str | None = None, label: str | None = None) -> str:
    """The column of texts, of a table whose labels (if any) are in the column ``label``; raises as ``find_columns``."""
    others = [name for name in table.columns if name != label]
    found = _named(table, TEXT, text) or (others[0] if len(others) == 1 else _by_name(table, TEXT_NAMES, label))
    found = found or _only(table, label, _can_be_texts)
    if found is None:
        raise DataError(f"{table.where}: which column has the texts? Say --text NAME. {listed_columns(table.columns)}")
    return found


def _named(table: Table, names: tuple[str, ...], name: str | None) -> str | None:
    """The name that a flag or the mapping gives to a column, if any; ``names`` are those of its part."""
    if name is None:
        return table.named(*names)
    refuse_missing([name], table.columns, table.where, f"--{names[0]}")
    return name


def _by_name(table: Table, names: tuple[tuple[str, ...], ...], taken: str | None) -> str | None:
    """The column that has one of the usual names, where it is the only one of its line."""
    for line in names:
        found = [column for column in table.columns if column.strip().lower() in line and column != taken]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _only(table: Table, taken: str | None, can_be: Callable[[Sequence[Any]], bool]) -> str | None:
    """The one column besides ``taken`` whose cells look as they must, if it is only one."""
    found = [
        column
        for column in table.columns
        if column != taken and can_be([value for value in table.values(column) if value is not None])
    ]
    return found[0] if len(found) == 1 else None


def _can_be_texts(values: Sequence[Any]) -> bool:
    """Mostly different texts of several words."""
    if not values or not all(isinstance(value, str) for value in values):
        return False
    return len(set(values)) > len(values) / 2 and sum(len(value.split()) for value in values) >= WORDS * len(values)


def _can_be_labels(values: Sequence[Any]) -> bool:
    """At least two different cells, each of them twice on average, and not too many for a task."""
    if not all(isinstance(value, str | int | bool) for value in values):
        return False
    return 2 <= len(set(values)) <= min(MAX_OPTIONS, len(values) / 2)
