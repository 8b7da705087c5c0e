"""The labelled rows of a user's table: what can be learned of them, what stands in the way, and what looks wrong."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from abmll.common.errors import DataError, nearest
from abmll.tasks.columns import WORDS, Columns, Table
from abmll.tasks.fields import SPLITS
from abmll.tasks.look_alikes import visible
from abmll.tasks.types import MAX_OPTIONS, Example, normalize

FEWEST_ROWS = 4
FEW = 2  # examples of a label
SEPARATORS = "|;,"  # of several labels in a cell; the first that the column has
SHOWN = 5
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class LabelledRows:
    """The rows that have a text and a label.

    Args:
        rows: their N places in the table, from 0.
        texts: (N,)
        chosen: (N,) each row's labels; one each, unless a row may have several.
        labels: all labels, sorted or in the order that was given.
        unlabelled: places of rows that have a text and no label.
        without_text: how many rows have no text.
        held_out: how many rows have a column ``split`` that says they are for testing.
        warnings: what looks wrong, a line each.
    """

    rows: tuple[int, ...]
    texts: tuple[str, ...]
    chosen: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    unlabelled: tuple[int, ...]
    without_text: int
    held_out: int
    warnings: tuple[str, ...]

    def examples(self) -> tuple[Example, ...]:
        """An example for each row; without an answer where rows may have several labels."""
        index = {label: number for number, label in enumerate(self.labels)}
        answers = [index[own[0]] if len(own) == 1 else None for own in self.chosen]
        rows = zip(self.rows, self.texts, answers, strict=True)
        return tuple(Example(str(row), text, self.labels, answer) for row, text, answer in rows)


def capped(rows: LabelledRows, limit: int | None) -> LabelledRows:
    """At most ``limit`` of the rows: of each label (the first, where they are several) as many as can be."""
    if limit is None or len(rows.rows) <= limit:
        return rows
    seen: Counter[str] = Counter()
    turns = []
    for n, own in enumerate(rows.chosen):
        first = own[0] if own else ""
        turns.append((seen[first], n))
        seen[first] += 1
    kept = sorted(n for _, n in sorted(turns)[:limit])
    return replace(
        rows,
        rows=tuple(rows.rows[n] for n in kept),
        texts=tuple(rows.texts[n] for n in kept),
        chosen=tuple(rows.chosen[n] for n in kept),
    )


def in_order(rows: LabelledRows) -> LabelledRows:
    """The rows with their labels, which are numbers, in order. Raises ``DataError`` where they are none."""
    if not all(NUMBER.fullmatch(label) for label in rows.labels):
        known = ",".join(rows.labels[:3]) + ",..." * (len(rows.labels) > 3)
        raise DataError(f"the labels are no numbers, so say their order, the lowest first: --labels {known}")
    return replace(rows, labels=tuple(sorted(rows.labels, key=lambda label: float(label.replace(",", ".")))))


def labelled_rows(
    table: Table, columns: Columns, labels: Sequence[str] = (), is_multi_label: bool = False
) -> LabelledRows:
    """What a table teaches.

    Args:
        labels: all there are, in their order; none: those of the rows, sorted.
        is_multi_label: a cell may hold several labels: a list, or texts between "|", ";" or ",".

    Raises ``DataError`` where nothing can be learned: too few rows, less than 2 labels or more than 200, a label that
    is not among ``labels`` or has a line break, numbers that are quantities.
    """
    texts = table.texts(columns.text)
    cells: Sequence[Any] = table.values(columns.label) if is_multi_label else table.texts(columns.label)
    split = _splitter(cells) if is_multi_label else lambda cell: (cell.strip(),)
    sides = table.values(table.named("split") or "split")
    held_out = {n for n, side in enumerate(sides) if SPLITS.get(str(side)) == "test"}
    has_text = [n for n, text in enumerate(texts) if text is not None and n not in held_out]
    unlabelled = tuple(n for n in has_text if cells[n] is None)
    rows = tuple(n for n in has_text if cells[n] is not None)
    chosen = tuple(split(cells[n]) for n in rows)
    kept = tuple(text for n in rows if (text := texts[n]) is not None)
    _refuse_few(table, columns, len(rows))
    for n, own in zip(rows, chosen, strict=True):
        _refuse_odd(own, labels, table.rows[n].where)
    counts = Counter(label for own in chosen for label in own)
    known = tuple(labels) or tuple(sorted(counts))
    _refuse_labels(table, columns, counts, known, is_multi_label)
    if len(set(map(normalize, kept))) == 1:
        raise DataError(f"{table.where}: all labelled rows have the same text in '{columns.text}'; name another column")
    warnings = [*_rare(counts, known), *_twins(known), *_contradictions(table, rows, kept, chosen)]
    warnings += _swapped(columns, kept)
    without_text = sum(text is None for text in texts)
    return LabelledRows(rows, kept, chosen, known, unlabelled, without_text, len(held_out), tuple(warnings))


def _splitter(cells: Sequence[Any]) -> Callable[[Any], tuple[str, ...]]:
    """How a cell of several labels is taken apart."""
    mark = next((mark for mark in SEPARATORS if any(isinstance(cell, str) and mark in cell for cell in cells)), "|")

    def split(cell: Any) -> tuple[str, ...]:
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except ValueError as error:
                raise DataError(f'{cell[:60]!r} is not a JSON list of labels such as ["a", "b"]') from error
        parts = cell if isinstance(cell, list | tuple) else str(cell).split(mark)
        return tuple(dict.fromkeys(text for part in parts if (text := str(part).strip())))

    return split


def _refuse_few(table: Table, columns: Columns, number: int) -> None:
    if not number:
        raise DataError(
            f"{table.where}: no row has both a text in '{columns.text}' and a label in '{columns.label}'; label some "
            "rows, or name other columns with --text and --label"
        )
    if number < FEWEST_ROWS:
        raise DataError(
            f"{table.where}: {number} rows are labelled; label at least {FEWEST_ROWS}, better ten of each label"
        )


def _refuse_odd(own: Sequence[str], labels: Sequence[str], where: str) -> None:
    for label in own:
        if "\n" in label or "\r" in label:
            raise DataError(f"{where}: the label {label[:60]!r} has a line break; write it on one line")
        if labels and label not in labels:
            raise DataError(
                f"{where}: the label '{label[:60]}' is not among --labels.{nearest(label, labels)} Add or correct it"
            )


def _refuse_labels(
    table: Table, columns: Columns, counts: Mapping[str, int], labels: Sequence[str], is_multi_label: bool
) -> None:
    where = f"{table.where}: '{columns.label}'"
    if len(labels if is_multi_label else counts) < 2:
        raise DataError(f"{where} has one label alone, '{next(iter(counts))}'; rows of at least two are needed")
    total = sum(counts.values())
    numbers = sum(NUMBER.fullmatch(label) is not None for label in counts)
    if numbers == len(counts) > 10 and len(counts) > total / 3:
        raise DataError(
            f"{where} has {len(counts)} different numbers in {total} rows: a quantity, not labels; replace them by a "
            "few classes, such as low, medium and high"
        )
    if len(counts) == total and not is_multi_label:
        raise DataError(f"{where} has another label in every row; is it the right column? If not, say --label NAME")
    if len(labels) > MAX_OPTIONS:
        raise DataError(
            f"{where} has {len(labels)} labels; at most {MAX_OPTIONS} are possible. Give the rarest ones a common label"
            ", such as 'other', or name another column with --label"
        )


def shortened(items: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    found = list(items)
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _rare(counts: Mapping[str, int], labels: Sequence[str]) -> list[str]:
    rare = [f"'{label}' ({counts.get(label, 0)})" for label in labels if counts.get(label, 0) <= FEW]
    return [f"labels with {FEW} examples or fewer: {shortened(rare)}; label more rows of them"] if rare else []


def _twins(labels: Sequence[str]) -> list[str]:
    """Labels that may be one."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(normalize(visible(label)), []).append(label)
    pairs = [" and ".join(_told_apart(group)) for group in groups.values() if len(group) > 1]
    what = "labels that differ in case, spaces, marks or invisible characters alone"
    return [f"{what}: {shortened(pairs)}; if they mean the same, make them one"] * bool(pairs)


def _told_apart(labels: Sequence[str]) -> list[str]:
    """The labels in quotes, with escapes where some of them look the same."""
    alike = len(set(map(visible, labels))) < len(labels)
    return [ascii(label) if alike else f"'{label}'" for label in labels]


def _contradictions(
    table: Table, rows: Sequence[int], texts: Sequence[str], chosen: Sequence[tuple[str, ...]]
) -> list[str]:
    """Rows that say the same and are labelled differently."""
    groups: dict[str, list[tuple[int, frozenset[str]]]] = {}
    for row, text, own in zip(rows, texts, chosen, strict=True):
        groups.setdefault(normalize(text), []).append((row, frozenset(own)))
    found = [group for group in groups.values() if len({own for _, own in group}) > 1]
    if not found:
        return []
    shown = " and ".join(_place(table, row) for row, _ in found[0][:2])
    number = f"{len(found)} text{'s' * (len(found) > 1)} with contradicting labels"
    return [f"{number}, such as {shown}; keep the right one"]


def _place(table: Table, row: int) -> str:
    """Where a row stands, short of the file's name: "line 5" or "row 5"."""
    where = table.rows[row].where.removeprefix(table.where).lstrip(": ")
    return f"line {where}" if where.isdigit() else where


def _swapped(columns: Columns, texts: Sequence[str]) -> list[str]:
    """Texts that look like labels."""
    is_short = sum(len(text.split()) for text in texts) < WORDS * len(texts)
    if is_short and len(set(texts)) <= len(texts) / 2:
        return [f"'{columns.text}' has few different, short texts: is it the right column? If not, say --text NAME"]
    return []
