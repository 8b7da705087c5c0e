"""Tasks whose answers are written: which rows are one, their examples, and when two answers are the same.

Rows of JSON lines, JSON, Parquet or a dataset are such a task where some have an ``output`` and none has options or an
``answer``. In a CSV, TSV or Excel sheet such rows have always meant a choice between all outputs of the file, and
still do: there, and where a number is to be written, the user says so (``--generate``).
"""

import re
import string
from collections.abc import Sequence
from typing import Any

from abmll.common.errors import DataError
from abmll.tasks.fields import OPTION_COLUMN, identity_of, split_of, text_of
from abmll.tasks.rows import Row
from abmll.tasks.types import WrittenExample

WRITTEN = "written"  # in a posterior's settings: its task's answers are written
SEVERAL = 10  # different numbers above which outputs are taken for the values of a regression
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def say_written(rows: Sequence[Row], cells_are_text: bool) -> bool:
    """Whether the rows say by themselves that answers are written.

    Raises ``DataError`` where the outputs are numbers, and many different ones.
    """
    outputs = [row.values["output"] for row in rows if "output" in row.values]
    written = bool(outputs) and not cells_are_text and all(_may_be_written(row) for row in rows)
    numbers = [str(output) for output in outputs if _is_number(output)] if written else []
    if len(numbers) == len(outputs) and len(set(numbers)) > SEVERAL:
        raise DataError(
            f"{rows[0].where}: all outputs are numbers, and many different ones; regression is not offered: give "
            "ranges with names as options, or say --generate to have the numbers, as texts, written"
        )
    return written


def written_example(row: Row, fallback_id: str, require_answer: bool) -> WrittenExample:
    """The example that a row describes; its options and its answer play no part. Raises as ``example_of``."""
    has_output = row.values.get("output") is not None
    output = text_of(row, "output").strip() if has_output or require_answer else None
    identity, split = identity_of(row, fallback_id), split_of(row)
    try:
        return WrittenExample.of(identity, text_of(row, "input"), output, split)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def normalize_answer(text: str) -> str:
    """An answer without case, punctuation, English articles and needless space, as SQuAD's evaluation has it.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016.
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def same_answer(text: str) -> str:
    """What two answers share that count as one: ``normalize_answer``, or the text where that leaves nothing."""
    return normalize_answer(text) or text.strip()


def _may_be_written(row: Row) -> bool:
    """Whether nothing in it speaks for a choice; one without an output is a question, or a mistake to be named."""
    others = [key for key in row.values if key in ("options", "answer") or OPTION_COLUMN.match(key)]
    return ("output" in row.values or "input" in row.values) and not others


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)
