"""``abmll predict`` and ``abmll evaluate`` where answers are written."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.cli.answers import write_table
from abmll.cli.console import count, cut_in_words, narrator, print_json, print_result, print_table
from abmll.cli.loading import load_posterior
from abmll.cli.sources import Reading
from abmll.common.checkpoint import DOCUMENT, load_bundle
from abmll.common.config import EvaluateConfig, PlaceConfig, PredictConfig, WriteConfig
from abmll.common.documents import Document
from abmll.common.errors import ConfigError, DataError
from abmll.common.settings import flatten
from abmll.experiments.written_metrics import METRICS, exact_match, token_f1
from abmll.experiments.written_tasks import answer_row, answer_rows, evaluate_written, save_written
from abmll.language.activation_cache import ActivationCache
from abmll.model.generation import WrittenAnswer
from abmll.tasks import Suite
from abmll.tasks.columns import Table, find_text, is_task_file, read_table
from abmll.tasks.hub_name import task_name as name_of
from abmll.tasks.read import task_of
from abmll.tasks.written import WRITTEN

if TYPE_CHECKING:
    from abmll.model.learned_task import TaskPosterior
    from abmll.model.meta_learner import AbmllModel

LISTS = (".jsonl", ".parquet")  # forms of answers in which a cell may be a list


def learned_to_write(folder: Path) -> bool:
    """Whether the folder has a posterior of a task whose answers are written."""
    has_document = (folder / DOCUMENT).is_file()
    return has_document and bool(load_bundle(folder, DOCUMENT).document["settings"].get(WRITTEN))


def refuse_unread(how: WriteConfig | PredictConfig, answers: str, given: Collection[str] | None = None) -> None:
    """Raise ``ConfigError`` for settings other than the usual ones, which such ``answers`` do not read.

    ``given`` are those that the user has set; others are a preset's, and may be anything.
    """
    usual = flatten(type(how)())
    for name, value in flatten(how).items():
        if value != usual[name] and (given is None or name in given):
            raise ConfigError(f"{name}: these answers are {answers}; leave it out")


def write_file(
    folder: Path,
    source: Path,
    output: Path,
    how: WriteConfig,
    text: str | None,
    task_name: str | None,
    place: PlaceConfig,
    seed: int,
    reading: Reading,
    json: bool,
) -> None:
    """Write the answers to a file's questions: of a task file with their ids, of a table beside its columns."""
    quiet, columns = reading.quiet, reading.column_mapping or {}
    table = read_table(source, columns, announce=reading.announce, quiet=quiet)
    has_input = "input" in {columns.get(name, name) for name in table.columns}
    is_task = text is None and (has_input or is_task_file(source, table))
    posterior = load_posterior(folder, task_name, name_of(source), place, quiet)
    if is_task:
        examples = task_of(
            table, source, name=task_name, require_answer=False, announce=reading.announce, generate=True
        ).examples
        answers = posterior.generate(examples, how, seed=seed, quiet=quiet)
        rows = answer_rows(posterior.task_name, examples, answers)
    else:
        answers, rows = _of_table(posterior, table, find_text(table, text), how, seed, quiet)
    lists = () if output.suffix in LISTS else ("samples",)
    write_table(output, [{key: value for key, value in row.items() if key not in lists} for row in rows])
    known = [(row["output"], row["reference"]) for row in rows if row.get("reference") is not None] if is_task else []
    summary = {"output": str(output), "members": len(posterior.members)} | _summary(answers, known, how)
    print_result(summary, _facts(summary), quiet, json)


def _of_table(
    posterior: "TaskPosterior", table: Table, column: str, how: WriteConfig, seed: int, quiet: bool
) -> tuple[list[WrittenAnswer], list[Document]]:
    """The answers to a column's texts, and the table's rows with them."""
    for name in ("output", "agreement", "entropy", "samples"):
        if name in table.columns:
            raise DataError(f"{table.where}: has a column '{name}', as the answers will; rename it")
    texts = []
    for row, cell in zip(table.rows, table.texts(column), strict=True):
        if cell is None:
            raise DataError(f"{row.where}: no text in column '{column}'; give one, or leave the row out")
        texts.append(cell)
    answers = posterior.generate(texts, how, seed=seed, quiet=quiet)
    pairs = zip(table.rows, answers, strict=True)
    return answers, [row.values | answer_row(answer) | {"samples": list(answer.samples)} for row, answer in pairs]


def _summary(answers: list[WrittenAnswer], known: list[tuple[str, str]], how: WriteConfig) -> dict[str, Any]:
    """Means over all questions; the scores over those whose answer the file has (None: it has none)."""
    sampled = how.num_answers > 1
    return {
        "examples": len(answers),
        "num_answers": how.num_answers,
        "empty": sum(not answer.output.strip() for answer in answers),
        "truncated": sum(answer.truncated > 0 for answer in answers),
        "agreement": sum(answer.agreement for answer in answers) / len(answers) if sampled else None,
        "entropy": sum(answer.entropy for answer in answers) / len(answers) if sampled else None,
        "answered": len(known),
        "exact_match": sum(exact_match(*pair) for pair in known) / len(known) if known else None,
        "token_f1": sum(token_f1(*pair) for pair in known) / len(known) if known else None,
    }


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    facts = {"answers": summary["output"], "questions": f"{summary['examples']:,}"}
    if summary["agreement"] is None:
        facts["agreement"] = "not known from one answer each; --num-answers 8 measures it"
    else:
        facts["agreement"] = f"{summary['agreement']:.3f} on average, of {summary['num_answers']} answers each"
        facts["entropy"] = f"{summary['entropy']:.3f} nats on average"
    if summary["empty"]:
        facts["empty"] = f"{count(summary['empty'], 'answer')}, of which nothing was written"
    if summary["exact_match"] is not None:
        facts["exact match"] = f"{summary['exact_match']:.3f}, of {count(summary['answered'], 'known answer')}"
        facts["token F1"] = f"{summary['token_f1']:.3f}"
    if summary["truncated"]:
        facts["truncated"] = cut_in_words(summary["truncated"], summary["examples"])
    return facts


def evaluate_suite(
    model: "AbmllModel",
    suite: Suite,
    config: EvaluateConfig,
    how: WriteConfig,
    output_dir: Path,
    about: Document,
    seed: int,
    cache: ActivationCache | None,
    quiet: bool,
    json: bool,
) -> None:
    """Adapt to every evaluation task, write and score the answers, and save both."""
    evaluation = evaluate_written(model, suite.evaluation, config, how, seed=seed, cache=cache, quiet=quiet)
    save_written(evaluation, output_dir, model, config, how, about)
    if evaluation.truncated:
        narrator(quiet)(f"{count(evaluation.truncated, 'input')} too long for the model, cut in the middle")
    if empty := evaluation.mean["empty"]:
        narrator(quiet)(f"{count(empty, 'answer')} of which nothing was written")
    if json:
        numbers = {"mean": evaluation.mean, "tasks": evaluation.tasks}
        print_json({"output_dir": str(output_dir), "truncated": evaluation.truncated} | numbers)
    elif not quiet:
        named = [*evaluation.tasks.items(), ("mean", evaluation.mean)]
        print_table(["task", *METRICS], [[name, *(_cell(row[metric]) for metric in METRICS)] for name, row in named])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
