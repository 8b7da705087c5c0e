"""Columns under other names: a mapping of a dataset's names to ours, as ``{"sentence": "text", "category": "label"}``.

Rows are renamed here and nowhere else. A user's table keeps its names, and remembers which column has which part.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from abmll.common.errors import ConfigError, DataError, nearest
from abmll.tasks.fields import KEYS
from abmll.tasks.rows import Row

ColumnMapping = Mapping[str, str]  # their name: ours
NAMES = ("text", "label", *KEYS)
OPTION = re.compile(r"(option|choice)_\w+")
FLAG = "--column-mapping"


def parse_mapping(texts: Sequence[str] | None) -> dict[str, str]:
    """The mapping that ``THEIRS=OURS`` texts stand for. Raises ``ConfigError`` as ``check_mapping``."""
    mapping: dict[str, str] = {}
    for text in texts or ():
        theirs, _, ours = (part.strip() for part in text.rpartition("="))
        if not theirs or not ours:
            raise ConfigError(f"column_mapping: '{text}' is no pair; write THEIRS=OURS, such as sentence=text")
        if theirs in mapping:
            raise ConfigError(f"column_mapping: '{theirs}' is named twice; keep one of them")
        mapping[theirs] = ours
    check_mapping(mapping)
    return mapping


def check_mapping(mapping: ColumnMapping) -> None:
    """Raise ``ConfigError`` for a name that is none of ours, and for two columns that would have the same."""
    for theirs, ours in mapping.items():
        if ours not in NAMES and not OPTION.fullmatch(ours):
            hint = nearest(ours, NAMES)
            raise ConfigError(f"column_mapping: '{theirs}={ours}': use one of {', '.join(NAMES)} or option_1.{hint}")
        if list(mapping.values()).count(ours) > 1:
            both = " and ".join(f"'{name}'" for name, target in mapping.items() if target == ours)
            raise ConfigError(f"column_mapping: {both} cannot both be '{ours}'; leave one out")


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Every key of the rows, in order of appearance."""
    return tuple(dict.fromkeys(key for row in rows for key in row.values))


def renamed(rows: Sequence[Row], mapping: ColumnMapping, where: str) -> list[Row]:
    """The rows under our names; a column that had such a name by itself gives way to the one that is mapped to it.

    Raises ``DataError`` for a column that no row has, and as ``check_mapping``.
    """
    if not mapping:
        return list(rows)
    check_mapping(mapping)
    refuse_missing(mapping, columns_of(rows), where, FLAG)
    return [renamed_row(row, mapping) for row in rows]


def renamed_row(row: Row, mapping: ColumnMapping) -> Row:
    """A row under our names."""
    taken = mapping.values()
    values = {mapping.get(key, key): cell for key, cell in row.values.items() if key in mapping or key not in taken}
    return Row(row.where, values)


def refuse_missing(names: Collection[str], columns: Sequence[str], where: str, flag: str) -> None:
    """Raise ``DataError`` for a name that a flag gives and that is no column."""
    for name in names:
        if name not in columns:
            raise DataError(f"{where}: no column '{name}' ({flag}).{nearest(name, columns)} {listed_columns(columns)}")


def listed_columns(columns: Sequence[str]) -> str:
    """The columns that there are, as a sentence."""
    return f"Its columns are: {', '.join(columns[:12])}" + (", ..." if len(columns) > 12 else "")
