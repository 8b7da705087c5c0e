"""Few-shot evaluation of tasks whose answers are written: adapt to each, write the answers, score them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.common.config import EvaluateConfig, WriteConfig
from abmll.common.documents import Document, write_document, write_json_lines
from abmll.common.errors import DataError
from abmll.common.settings import flatten
from abmll.experiments.few_shot import adapt_to_tasks, versions
from abmll.experiments.written_metrics import mean_scores, require_rouge, score_answers
from abmll.language.activation_cache import ActivationCache
from abmll.methods import find_rule
from abmll.model.generation import WrittenAnswer
from abmll.model.meta_learner import AbmllModel
from abmll.tasks import Example, Task


@dataclass(frozen=True)
class WrittenEvaluation:
    """Scores per task, their means over tasks, and every single answer."""

    tasks: dict[str, dict[str, Any]]
    mean: dict[str, Any]
    answers: list[Document]
    truncated: int  # questions whose input was cut


def evaluate_written(
    model: AbmllModel,
    tasks: Sequence[Task],
    config: EvaluateConfig,
    how: WriteConfig,
    *,
    seed: int = 0,
    cache: ActivationCache | None = None,
    quiet: bool = True,
) -> WrittenEvaluation:
    """Adapt to each task, write the answers to its test examples, and score them.

    Raises as ``adapt_to_tasks`` and ``require_rouge``, before any work.
    """
    require_rouge()
    scores, rows, truncated = {}, [], 0
    for task in adapt_to_tasks(model, tasks, config, seed=seed, cache=cache, quiet=quiet):
        answers = task.posterior.generate(task.questions, how, seed=seed)
        scores[task.name] = score_answers(answers, [one.options[0] for one in task.questions])
        rows += answer_rows(task.name, task.questions, answers)
        truncated += sum(answer.truncated > 0 for answer in answers)
    return WrittenEvaluation(scores, mean_scores(scores), rows, truncated)


def answer_rows(task_name: str, examples: Sequence[Example], answers: Sequence[WrittenAnswer]) -> list[Document]:
    """One JSON-ready row for each answer; the reference is None where it is not known."""
    return [
        {"task": task_name, "id": example.id, **answer_row(answer)}
        | {"reference": example.options[0] if example.options else None, "samples": list(answer.samples)}
        for example, answer in zip(examples, answers, strict=True)
    ]


def answer_row(answer: WrittenAnswer) -> Document:
    """The answer and its doubt, which one sample cannot show."""
    sampled = len(answer.samples) > 1
    doubt = (answer.agreement, answer.entropy) if sampled else (None, None)
    return {"output": answer.output} | dict(zip(("agreement", "entropy"), doubt, strict=True))


def refuse_written_tasks(tasks: Sequence[Task], verb: str) -> None:
    """Raise ``DataError`` for a task whose answers are written, where ``verb`` has no use for it."""
    written = next((task for task in tasks if task.is_written), None)
    if written is not None:
        raise DataError(f"{written.where}: its answers are written, not chosen; {verb}")


def save_written(
    evaluation: WrittenEvaluation,
    folder: Path,
    model: AbmllModel,
    config: EvaluateConfig,
    how: WriteConfig,
    about: Document,
) -> None:
    """Write ``metrics.json`` and ``predictions.jsonl``; ``about`` names run, suite and seed."""
    rule = find_rule(model.learning.method)
    document = {
        "method": rule.name,
        "label": rule.label,
        **about,
        "settings": model.scorer.settings() | flatten(model.learning, config, how),
        "versions": versions(),
        "truncated_prompts": evaluation.truncated,
        "tasks": evaluation.tasks,
        "mean": evaluation.mean,
    }
    write_json_lines(folder / "predictions.jsonl", evaluation.answers)
    write_document(folder / "metrics.json", "written evaluation", document)
