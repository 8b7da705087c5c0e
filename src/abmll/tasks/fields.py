"""A row becomes an example; what is wrong with it is said with file, line and key.

A row has these keys (CSV and Parquet: columns); others are ignored:

    input     the question, a text (may be empty)
    options   2 to 200 distinct texts: a list; in a CSV one cell with a JSON list, or columns option_... or choice_...
              in their order, of which a row may leave some empty
    answer    the right option's index from 0, or its text. In a CSV or TSV, where both look alike, the text goes first.
              MetaICL's ``output`` (a text) is understood as well
    task      optional: name of the task, by default that of the file
    family    optional: tasks of one family never stand on both sides of a suite
    split     optional: train; or test, validation, valid, val, dev, all of which mean test
    id        optional: a text or an integer

Rows whose ``output`` is to be written, not chosen, are ``abmll.tasks.written``'s.
"""

import json
import re
from sys import intern
from typing import Any

from abmll.common.errors import DataError, nearest
from abmll.tasks.rows import Row
from abmll.tasks.types import Example, Split

KEYS = ("input", "options", "answer", "output", "task", "family", "split", "id")
OPTION_COLUMN = re.compile(r"(option|choice)_\w+$")
SPLITS: dict[str, Split] = {"train": "train", "test": "test", "validation": "test", "valid": "test"}
SPLITS |= {"val": "test", "dev": "test"}


def example_of(
    row: Row, fallback_id: str, outputs: tuple[str, ...], require_answer: bool, cells_are_text: bool
) -> Example:
    """The example that a row describes.

    Args:
        fallback_id: the id of a row that has none.
        outputs: the options of rows that have none.
        require_answer: refuse a row without an answer.
        cells_are_text: the row is from a CSV or TSV, where a list or a number is written as text.

    Raises:
        DataError: what is wrong with which key, at which line, and what to do.
    """
    text = "" if cells_are_text and "input" not in row.values else text_of(row, "input")
    options = outputs or _options(row, cells_are_text)
    answer = _answer(row, options, require_answer, cells_are_text)
    identity, split = identity_of(row, fallback_id), split_of(row)
    try:
        return Example(identity, text, options, answer, split)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def text_of(row: Row, key: str) -> str:
    """The value of a key that must be there and be a text."""
    if key not in row.values:
        raise _missing(row, key)
    return _text(row, f"'{key}'", row.values[key])


def _missing(row: Row, key: str) -> DataError:
    """The error of a row without a key, with the key of the row that may have been meant."""
    hint = nearest(key, [name for name in row.values if name not in KEYS])
    remedy = hint.replace("Did you mean", "Rename").replace("?", f" to '{key}'") if hint else " Add it"
    return DataError(f"{row.where}: no key '{key}'.{remedy}.")


def _text(row: Row, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{row.where}: {what} is {_kind(value)}; it must be a text")
    try:
        value.encode()  # half a surrogate pair is all that cannot be
    except UnicodeEncodeError:
        raise DataError(f"{row.where}: {what} holds half a surrogate pair, which is no character; remove it") from None
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"{json.dumps(value, default=str)[:40]} ({type(value).__name__})"


def _options(row: Row, cells_are_text: bool) -> tuple[str, ...]:
    value = row.values.get("options")
    if "options" not in row.values:
        columns = [key for key in row.values if OPTION_COLUMN.match(key)]
        if not columns:
            raise _missing(row, "options")
        value = [row.values[key] for key in columns if row.values[key] is not None]
    elif cells_are_text and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f'{row.where}: \'options\' is not a JSON list such as ["yes", "no"]') from error
    if not isinstance(value, list):
        raise DataError(f"{row.where}: 'options' is {_kind(value)}; it must be a list of texts")
    # Interned: most rows of a task have the same few options.
    return tuple(intern(_text(row, f"option {index}", option)) for index, option in enumerate(value))


def _answer(row: Row, options: tuple[str, ...], required: bool, cells_are_text: bool) -> int | None:
    """The index of the right option, or None where none is given and none is required."""
    key = "output" if "output" in row.values and "answer" not in row.values else "answer"
    value = row.values.get(key)
    if value is None and not required:
        return None
    if isinstance(value, str):
        stripped = [option.strip() for option in options]
        if value.strip() in stripped:
            return stripped.index(value.strip())
        if cells_are_text and re.fullmatch(r"\s*-?\d{1,9}\s*", value):
            return int(value)  # its range is checked with the example
        raise DataError(
            f"{row.where}: {key} {value[:60]!r} is not among the {len(options)} options; "
            "give an option's text, or its index from 0"
        )
    if key not in row.values:
        raise _missing(row, key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "answer":
        return value
    raise DataError(f"{row.where}: {key} is {_kind(value)}; give an option's text, or its index from 0 as an integer")


def split_of(row: Row) -> Split | None:
    """The side that a row names, if any."""
    value = row.values.get("split")
    if value is None:
        return None
    if isinstance(value, str) and value in SPLITS:
        return SPLITS[value]
    raise DataError(f"{row.where}: split is {_kind(value)}; use one of {', '.join(SPLITS)}")


def identity_of(row: Row, fallback: str) -> str:
    """The id of a row, or ``fallback``."""
    value = row.values.get("id")
    if value is None:
        return fallback
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(row, "'id'", value)
