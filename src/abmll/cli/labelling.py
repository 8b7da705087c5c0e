"""The tables of ``abmll classify`` and ``abmll suggest``: read, learned from, answered."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from abmll.cli.console import count
from abmll.common.config import AdaptConfig, PredictConfig, TableConfig
from abmll.common.errors import ConfigError, DataError, nearest
from abmll.language.activation_cache import ActivationCache
from abmll.model.learned_task import TaskPosterior
from abmll.model.meta_learner import AbmllModel
from abmll.model.multi_label import MultiLabelHead
from abmll.model.prediction import Prediction
from abmll.tasks import Example
from abmll.tasks.columns import Columns, Table, find_columns, find_text, read_table
from abmll.tasks.labelled import LabelledRows, capped, in_order, labelled_rows, shortened

Say = Callable[[str], None]


class Task(NamedTuple):
    """A table's labelled rows as a task."""

    table: Table
    columns: Columns
    rows: LabelledRows
    settings: TableConfig


class Answers(NamedTuple):
    """The rows to write; the confidence of each that has a text, and of those that have a label whether it is right."""

    rows: list[dict[str, Any]]
    confidence: list[float]
    review: int
    right: list[bool]
    prediction: Prediction


def read_labelled(table: Table, settings: TableConfig, say: Say) -> Task:
    """The labelled rows of a table; says what was found, and warns of what looks wrong."""
    columns = find_columns(table, settings.text, settings.label)
    known = settings.labels or table.classes.get(columns.label, ())
    found = labelled_rows(table, columns, known, settings.multi_label)
    if settings.ordinal and not known:
        found = in_order(found)
    limit = settings.max_examples
    rows = capped(found, limit)
    say(f"{table.where}: texts in column '{columns.text}', labels in '{columns.label}': {shortened(rows.labels)}")
    none = " (write [] for none of the labels)" if settings.multi_label else ""
    left_out = {
        f"without a label{none}": len(found.unlabelled),
        "without a text": found.without_text,
        "whose 'split' is for testing": found.held_out,
        f"above --max-examples {limit}": len(found.texts) - len(rows.texts),
    }
    for why, number in left_out.items():
        if number:
            say(f"{count(number, 'row')} {why} left out")
    if columns.label in rows.labels:
        say(f"warning: the first line was read as the names of the columns, and '{columns.label}' is a label too")
    for warning in rows.warnings:
        say(f"warning: {warning}")
    return Task(table, columns, rows, settings)


def read_new(path: Path, task: Task, say: Say, quiet: bool) -> tuple[Table, str]:
    """The table to answer, and the column of its texts."""
    table = read_table(path, announce=say, quiet=quiet)
    text = text_column(table, task, say)
    refuse_taken(table, task.rows.labels)
    return table, text


def refuse_taken(table: Table, labels: Sequence[str]) -> None:
    """Raise ``DataError`` where a column has the name of one of those that will be written."""
    taken = [name for name in answer_columns(labels) if name in table.columns]
    if taken:
        raise DataError(f"{table.where}: has a column '{taken[0]}', as the answers will; rename it")


def text_column(table: Table, task: Task, say: Say) -> str:
    """The column of another table's texts."""
    named = task.columns.text
    text = named if named in table.columns else find_text(table, label=task.columns.label)
    if text != named:
        say(f"{table.where}: texts in column '{text}'")
    return text


def check_confidence(review_below: float) -> None:
    """Raise ``ConfigError`` where a confidence below which a person looks is none."""
    if not 0 <= review_below <= 1:
        raise ConfigError(f"--review-below is {review_below}; it must be from 0 to 1")


def answer_columns(labels: Sequence[str]) -> list[str]:
    """The columns that are written behind those of the new rows."""
    return ["predicted_label", *(f"prob_{label}" for label in labels), "entropy", "mutual_information", "needs_review"]


def learn(
    task: Task | None,
    examples: Sequence[Example],
    model: AbmllModel,
    name: str,
    seed: int,
    quiet: bool,
    cache: ActivationCache | None = None,
    steps: AdaptConfig | None = None,
) -> TaskPosterior:
    """Learn ``examples`` as the model does: with a head, or by ``steps``; ``task`` is the table that they are from."""
    steps = steps or AdaptConfig()
    common: dict[str, Any] = {"task_name": name, "seed": seed, "cache": cache, "quiet": quiet}
    if task is not None and task.settings.multi_label:
        return model.adapt_multi_label(examples, task.rows.chosen, **common)
    order = task.rows.labels if task is not None and task.settings.ordinal else None
    return model.adapt(examples, label_order=order, steps=steps.steps, batch_size=steps.batch_size, **common)


def answer(
    posterior: TaskPosterior,
    asked: Table,
    text: str,
    label: str | None,
    review_below: float,
    say: Say,
    quiet: bool,
    how: PredictConfig | None = None,
    seed: int = 0,
) -> Answers:
    """Every new row with its answer; a row without a text has none. Those with a ``label`` are compared with it.

    Raises ``DataError`` where no row has a text.
    """
    labels, texts = posterior.labels, asked.texts(text)
    known = [n for n, own in enumerate(texts) if own is not None]
    if not known:
        raise DataError(f"{asked.where}: no row has a text in '{text}'; name another column with --text")
    prediction = posterior.predict([texts[n] for n in known], how, seed=seed, quiet=quiet)
    several = isinstance(posterior.head, MultiLabelHead)
    blank = dict.fromkeys(answer_columns(labels), None)
    rows = [{name: row.values.get(name) for name in asked.columns} | blank for row in asked.rows]
    confidence = []
    doubts = zip(prediction.entropy.tolist(), prediction.mutual_information.tolist(), strict=True)
    for n, probs, (entropy, information) in zip(known, prediction.lists(), doubts, strict=True):
        sure, given = _given(probs, labels, several)
        confidence.append(sure)
        rows[n] |= dict(zip(blank, [given, *probs, entropy, information, sure < review_below], strict=True))
    if len(known) < len(texts):
        say(f"{count(len(texts) - len(known), 'new row')} without a text: not answered")
    right = [] if several or label not in asked.columns else _right(asked, label, labels, rows, known, say)
    return Answers(rows, confidence, sum(sure < review_below for sure in confidence), right, prediction)


def _given(probs: Sequence[float], labels: Sequence[str], is_multi_label: bool) -> tuple[float, str]:
    """The confidence, that of the least sure label where there may be several, and the answer."""
    if is_multi_label:
        given = [label for label, prob in zip(labels, probs, strict=True) if prob > 0.5]
        return min(max(prob, 1 - prob) for prob in probs), "; ".join(given)
    return max(probs), labels[probs.index(max(probs))]


def _right(
    asked: Table, label: str, labels: Sequence[str], rows: Sequence[dict[str, Any]], known: Sequence[int], say: Say
) -> list[bool]:
    """Whether each new row that has a label is answered right; warns of labels that nothing was learned about."""
    own = asked.texts(label)
    truth = [(n, found.strip()) for n in known if (found := own[n]) is not None]
    unknown = list(dict.fromkeys(found for _, found in truth if found not in labels))
    if unknown:
        hint = nearest(unknown[0], labels)
        say(f"warning: new rows have labels that no labelled row has: {shortened(unknown)}.{hint}")
    return [rows[n]["predicted_label"] == found for n, found in truth]
