"""``abmll classify``: labelled rows and new ones in; labels, probabilities and how far to trust them out."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.cli.console import cut_in_words, narrator, print_result
from abmll.common.config import AUTO_THETA, PlaceConfig, TableConfig
from abmll.common.errors import ConfigError

if TYPE_CHECKING:
    from abmll.cli.labelling import Answers, Task
    from abmll.experiments.trust import Measured


def classify(
    labelled: Path,
    new: Path,
    *,
    output: Path,
    columns: TableConfig,
    column_mapping: tuple[str, ...] | None = None,
    fold: int = 5,
    review_below: float = 0.8,
    theta: Path | None = Path(AUTO_THETA),
    save: Path | None = None,
    task_name: str | None = None,
    place: PlaceConfig,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Learn the labels of a table's rows and give them, with probabilities, to the rows of another.

    Tables are .csv, .tsv, .jsonl, .json, .parquet or .xlsx files; "-" reads a CSV or JSON lines from standard input,
    hf:NAME[CONFIG]:SPLIT a split of a Hugging Face dataset. Rows without a label are left out. How far to trust the
    answers is measured by cross-validation on the labelled rows, and shown in a page beside the output (answers.csv:
    answers.html).

    Args:
        labelled: table of rows with a text and a label
        new: table of rows to answer
        output: table to write, in the form of its suffix: all columns of the new rows, the label, each label's
            probability, entropy, mutual information, and whether a person should look at it
        fold: parts of the labelled rows in cross-validation, each answered by what the others teach
        review_below: confidence below which an answer is for a person to look at
        save: folder to write what was learned to, for abmll predict
        task_name: the task's name in the prompt (default: the file's)
        seed: seed of the posterior's samples
    """
    from abmll.cli.answers import check_form, refuse_inputs, write_table
    from abmll.cli.labelling import answer, check_confidence, learn, read_labelled, read_new
    from abmll.cli.loading import features_of, load_for_head
    from abmll.cli.places import check_file, check_folder
    from abmll.experiments.html.trust_page import write_trust_page
    from abmll.experiments.trust import measure
    from abmll.tasks.columns import read_table
    from abmll.tasks.hub_name import task_name as name_of
    from abmll.tasks.mapping import parse_mapping

    check_confidence(review_below)
    if fold < 2:
        raise ConfigError(f"--fold is {fold}; at least 2 are needed")
    page = output.with_suffix(".html")
    for path in (output, page):
        check_file(path, overwrite)
    check_form(output)
    refuse_inputs(output, (labelled, new))
    if save is not None:
        check_folder(save, overwrite, "posterior")
    say = narrator(quiet)
    mapping = parse_mapping(column_mapping)
    table = read_table(labelled, mapping, split="train", announce=say, quiet=quiet)
    task = read_labelled(table, columns, say)
    asked, of_texts = read_new(new, task, say, quiet)
    name = task_name or name_of(labelled)
    posterior = learn(task, task.rows.examples(), load_for_head(theta, place, quiet), name, seed, quiet)
    measured = measure(posterior, task.rows, fold, columns.ordinal, quiet)
    if save is not None:
        replace(posterior, measured=_measured(measured)).save_pretrained(save, overwrite)
    answers = answer(posterior, asked, of_texts, task.columns.label, review_below, say, quiet)
    write_table(output, answers.rows)
    facts = {"features": features_of(theta, place)} | _facts(task, measured, answers, fold, review_below)
    places = [(task.table.rows[n].where, own) for n, own in zip(task.rows.rows, task.rows.texts, strict=True)]
    write_trust_page(page, name, facts, task.rows.warnings, measured, places)
    files = {"answers": str(output), "report": str(page)} | ({} if save is None else {"posterior": str(save)})
    print_result(_summary(task, measured, answers) | files, files | facts, quiet, json)


def _facts(task: "Task", measured: "Measured", answers: "Answers", fold: int, review_below: float) -> dict[str, str]:
    """What is printed, and heads the page."""
    from abmll.experiments.trust import WANTED

    rows, trust = task.rows, measured.trust
    metrics, baseline, threshold = trust.metrics, trust.baseline, trust.threshold
    counts = [f"{label} ({number})" for label, number in zip(measured.labels, measured.chosen.sum(0), strict=True)]
    several = task.settings.multi_label
    each = f", {len(measured.labels)} decisions each" if several else ""
    usual, thing = ("as most rows", "decisions") if several else ("the most frequent label", "rows")
    facts = {
        "labelled rows": f"{len(rows.rows):,}: {', '.join(counts[:8])}{', ...' if len(counts) > 8 else ''}",
        "how far to trust it": f"{min(fold, len(rows.rows))}-fold cross-validation on the labelled rows{each}",
        "accuracy": f"{metrics['accuracy']:.3f} ({usual}: {baseline.accuracy:.3f})",
        "NLL": f"{metrics['nll']:.3f} nats (label frequencies alone: {baseline.nll:.3f})",
        "ECE": f"{metrics['ece']:.3f}, how far confidence is from accuracy",
    }
    if trust.rank_error is not None:
        facts["rank error"] = (
            f"{trust.rank_error[0]:.3f} ranks on average (a constant answer: {trust.rank_error[1]:.3f})"
        )
    if threshold is None:
        facts[f"{WANTED:.0%} right"] = "at no confidence"
    else:
        share = f"{threshold.right} of {threshold.covered} such {thing}, of {metrics['num_examples']} in all"
        facts[f"{WANTED:.0%} right"] = f"from confidence {threshold.confidence:.2f} on: {share}"
    facts["new rows"] = f"{len(answers.rows):,}, {len(answers.confidence):,} answered"
    if answers.prediction.truncated:
        facts["truncated"] = cut_in_words(answers.prediction.truncated, len(answers.confidence))
    facts["for a person"] = f"{answers.review:,} with a confidence below {review_below:g}"
    if answers.right:
        facts["right"] = f"{sum(answers.right):,} of {len(answers.right):,} new rows that have a label"
    return facts


def _summary(task: "Task", measured: "Measured", answers: "Answers") -> dict[str, Any]:
    """The same for other programs."""
    trust, threshold = measured.trust, measured.trust.threshold
    return {
        "text": task.columns.text,
        "label": task.columns.label,
        "labels": dict(zip(measured.labels, measured.chosen.sum(0).tolist(), strict=True)),
        "examples": len(task.rows.rows),
        "unlabelled": len(task.rows.unlabelled),
        "warnings": list(task.rows.warnings),
        "cross_validation": _measured(measured),
        "baseline": trust.baseline._asdict(),
        "rank_error": None if trust.rank_error is None else trust.rank_error[0],
        "threshold": None if threshold is None else threshold._asdict(),
        "answered": len(answers.confidence),
        "review": answers.review,
        "accuracy": sum(answers.right) / len(answers.right) if answers.right else None,
    }


def _measured(measured: "Measured") -> dict[str, Any]:
    return {key: measured.trust.metrics[key] for key in ("accuracy", "nll", "brier", "ece", "auroc")}
