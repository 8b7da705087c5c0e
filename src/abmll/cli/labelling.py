"""The tables of ``abmll classify`` and ``abmll suggest``: read, learned from, answered."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from abmll.cli.console import count
from abmll.cli.loading import load_learner
from abmll.common.config import ContinueConfig, PlaceConfig
from abmll.common.errors import ConfigError, DataError, nearest
from abmll.model.learned_task import TaskPosterior
from abmll.tasks import Example
from abmll.tasks.columns import Columns, Table, find_columns, find_text, read_table
from abmll.tasks.labelled import LabelledRows, capped, in_order, labelled_rows

Say = Callable[[str], None]


class Task(NamedTuple):
    """A table's labelled rows as a task."""

    table: Table
    columns: Columns
    rows: LabelledRows
    is_multi_label: bool
    is_ordinal: bool


class Answers(NamedTuple):
    """The rows to write; the confidence of each that has a text, and of those that have a label whether it is right."""

    rows: list[dict[str, Any]]
    confidence: list[float]
    review: int
    right: list[bool]


def read_labelled(
    path: Path,
    text: str | None,
    label: str | None,
    labels: Sequence[str],
    is_multi_label: bool,
    is_ordinal: bool,
    limit: int | None,
    say: Say,
) -> Task:
    """The labelled rows of a file, at most ``limit``; says what was found, and warns of what looks wrong."""
    if is_multi_label and is_ordinal:
        raise ConfigError("ordinal: labels that have an order exclude each other; leave out --multi-label")
    table = read_table(path)
    columns = find_columns(table, text, label)
    found = labelled_rows(table, columns, labels, is_multi_label)
    if is_ordinal and not labels:
        found = in_order(found)
    rows = capped(found, limit)
    say(f"{table.where}: texts in column '{columns.text}', labels in '{columns.label}': {_named(rows.labels)}")
    left_out = {
        "without a label": len(found.unlabelled),
        "without a text": found.without_text,
        f"above --max-examples {limit}": len(found.texts) - len(rows.texts),
    }
    for why, number in left_out.items():
        if number:
            say(f"{count(number, 'row')} {why} left out")
    for warning in rows.warnings:
        say(f"warning: {warning}")
    return Task(table, columns, rows, is_multi_label, is_ordinal)


def _named(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    return f"{shown} ({len(labels)})" if len(labels) > 8 else shown


def read_new(path: Path, task: Task, say: Say) -> tuple[Table, str]:
    """The table to answer, and the column of its texts: that of the labelled table, or the only one that can be meant.

    Raises ``DataError`` where a column has the name of one of those that will be written.
    """
    table = read_table(path)
    text = text_column(table, task, say)
    taken = [name for name in answer_columns(task.rows.labels) if name in table.columns]
    if taken:
        raise DataError(f"{table.where}: has a column '{taken[0]}', as the answers will; rename it")
    return table, text


def text_column(table: Table, task: Task, say: Say) -> str:
    """The column of another table's texts."""
    named = task.columns.text
    text = named if named in table.columns else find_text(table, label=task.columns.label)
    if text != named:
        say(f"{table.where}: texts in column '{text}'")
    return text


def answer_columns(labels: Sequence[str]) -> list[str]:
    """The columns that are written behind those of the new rows."""
    return ["predicted_label", *(f"prob_{label}" for label in labels), "entropy", "mutual_information", "review"]


def learn(task: Task, name: str, theta: Path | None, place: PlaceConfig, seed: int, quiet: bool) -> TaskPosterior:
    """Learn the task with a head."""
    model = load_learner(theta, "head", None, ContinueConfig(), place, quiet, frozenset())
    examples = task.rows.examples()
    if task.is_multi_label:
        return model.adapt_multi_label(examples, task.rows.chosen, task_name=name, seed=seed, quiet=quiet)
    return model.adapt(examples, task_name=name, seed=seed, how="head", quiet=quiet)


def answer(
    posterior: TaskPosterior, task: Task, asked: Table, text: str, review_below: float, say: Say, quiet: bool
) -> Answers:
    """Every new row with its answer; a row without a text has none."""
    labels, texts = task.rows.labels, asked.texts(text)
    known = [n for n, own in enumerate(texts) if own is not None]
    if not known:
        raise DataError(f"{asked.where}: no row has a text in '{text}'; name another column with --text")
    prediction = posterior.predict([Example(str(n), texts[n] or "", labels, None) for n in known], quiet=quiet)
    rows = [{name: row.values.get(name) for name in asked.columns} for row in asked.rows]
    blank = dict.fromkeys(answer_columns(labels), None)
    rows = [row | blank for row in rows]
    confidence, review = [], 0
    doubts = zip(prediction.entropy.tolist(), prediction.mutual_information.tolist(), strict=True)
    for n, probs, (entropy, information) in zip(known, prediction.lists(), doubts, strict=True):
        sure, given = _given(probs, labels, task.is_multi_label)
        confidence.append(sure)
        review += sure < review_below
        values = [given, *probs, entropy, information, sure < review_below]
        rows[n] |= dict(zip(blank, values, strict=True))
    if len(known) < len(texts):
        say(f"{count(len(texts) - len(known), 'new row')} without a text: not answered")
    return Answers(rows, confidence, review, _right(asked, task, rows, known, say))


def _given(probs: Sequence[float], labels: Sequence[str], is_multi_label: bool) -> tuple[float, str]:
    """The confidence, that of the least sure label where there may be several, and the answer."""
    if is_multi_label:
        given = [label for label, prob in zip(labels, probs, strict=True) if prob > 0.5]
        return min(max(prob, 1 - prob) for prob in probs), "; ".join(given)
    return max(probs), labels[probs.index(max(probs))]


def _right(asked: Table, task: Task, rows: Sequence[dict[str, Any]], known: Sequence[int], say: Say) -> list[bool]:
    """Whether each new row that has a label is answered right; warns of labels that nothing was learned about."""
    if task.is_multi_label or task.columns.label not in asked.columns:
        return []
    own = asked.texts(task.columns.label)
    labelled = [(n, own[n]) for n in known if own[n] is not None]
    truth = [(n, label.strip()) for n, label in labelled if label is not None]
    unknown = list(dict.fromkeys(label for _, label in truth if label not in task.rows.labels))
    if unknown:
        hint = nearest(unknown[0], task.rows.labels)
        say(f"warning: new rows have labels that no labelled row has: {_named(unknown)}.{hint}")
    return [rows[n]["predicted_label"] == label for n, label in truth]
