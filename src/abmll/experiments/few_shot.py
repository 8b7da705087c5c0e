"""Few-shot evaluation: adapt to each unseen task, predict its test examples, measure.

``adapt_to_tasks`` yields one adapted task after the other; what is done to its predictions (pruning, a temperature,
other questions) is up to the caller, who hands the results to ``measure``. ``evaluate_tasks`` does nothing to them.
"""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from abmll._version import __version__
from abmll.common.config import EvaluateConfig
from abmll.common.documents import Document, write_document, write_json_lines
from abmll.common.errors import DataError
from abmll.common.processes import ALONE, Processes
from abmll.common.progress import progress
from abmll.common.settings import flatten
from abmll.experiments.metrics import Predictions, evaluate_task, mean_over_tasks, pooled
from abmll.language.activation_cache import ActivationCache
from abmll.methods import find_rule
from abmll.model.learned_task import TaskPosterior
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import Prediction
from abmll.tasks import Example, Task
from abmll.tasks.evaluation_examples import choose_examples

PACKAGES = ("torch", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """Metrics per task, over all of them, and every single prediction."""

    tasks: dict[str, dict[str, Any]]
    mean: dict[str, Any]
    pooled: dict[str, Any]
    predictions: list[Document]
    truncated: int  # prompts whose input was cut
    left_out: int  # demonstrations that did not fit before a question, over all questions
    inverse_temperatures: dict[str, float]  # of the tasks that have a calibration, at its mean


@dataclass(frozen=True)
class AdaptedTask:
    """The posterior of one unseen task, the examples it is of, and the questions to be predicted, and how."""

    posterior: TaskPosterior
    support: Sequence[Example]
    questions: Sequence[Example]
    config: EvaluateConfig
    seed: int
    cache: ActivationCache | None

    @property
    def name(self) -> str:
        """The task's."""
        return self.posterior.task_name

    def predict(self, others: Sequence[Example] | None = None) -> Prediction:
        """The options' probabilities of the task's own questions, or of ``others`` in their place."""
        asked = self.questions if others is None else others
        return self.posterior.predict(asked, self.config, seed=self.seed, cache=self.cache)


def evaluate_tasks(
    model: AbmllModel,
    tasks: Sequence[Task],
    config: EvaluateConfig,
    *,
    seed: int = 0,
    cache: ActivationCache | None = None,
    quiet: bool = True,
    processes: Processes = ALONE,
) -> Evaluation:
    """Adapt to each task, predict its test examples, and measure. The ``processes`` share the tasks out.

    Raises as ``adapt_to_tasks``.
    """
    _refuse_names(tasks)
    with processes.agreed():
        own = [tasks[number] for number in processes.own(len(tasks))]
        adapted = adapt_to_tasks(model, own, config, seed=seed, cache=cache, quiet=quiet) if own else ()
        outcomes = [_outcome(task, task.predict()) for task in adapted]
    return _evaluation(processes.joined(outcomes, len(tasks)))


def adapt_to_tasks(
    model: AbmllModel,
    tasks: Sequence[Task],
    config: EvaluateConfig,
    *,
    seed: int = 0,
    cache: ActivationCache | None = None,
    quiet: bool = True,
) -> Iterator[AdaptedTask]:
    """Adapt to some of each task's training examples, which ``seed`` alone chooses, as it does the questions.

    Methods compared under one seed therefore see the same examples. Raises ``DataError``, before any work, for no
    tasks, two of one name, or one without labelled training or test examples.
    """
    _refuse_names(tasks)
    chosen = {task.name: choose_examples(task, config, seed) for task in tasks}
    with progress(len(tasks), "adapting and predicting", "task", quiet=quiet) as bar:
        for name, (support, questions) in chosen.items():
            yield adapt_to(model, name, support, questions, config, seed=seed, cache=cache)
            bar.update()


def adapt_to(
    model: AbmllModel,
    name: str,
    support: Sequence[Example],
    questions: Sequence[Example],
    config: EvaluateConfig,
    *,
    seed: int,
    cache: ActivationCache | None,
) -> AdaptedTask:
    """Adapt to the examples ``support`` of one task."""
    how: dict[str, Any] = {"steps": config.steps, "batch_size": config.batch_size, "seed": seed, "cache": cache}
    posterior = model.adapt(support, task_name=name, **how)
    return AdaptedTask(posterior, support, questions, config, seed, cache)


def measure(results: Sequence[tuple[AdaptedTask, Prediction]]) -> Evaluation:
    """Every metric of every task and of all together, from what was predicted of the tasks' own questions."""
    return _evaluation([_outcome(*one) for one in results])


def _outcome(task: AdaptedTask, prediction: Prediction) -> Document:
    """What ``_evaluation`` needs of one task, JSON-ready."""
    right = [one.answer for one in task.questions if one.answer is not None]
    calibration = task.posterior.calibration if task.config.use_calibration else None
    return {
        "name": task.name,
        "answers": right,
        "texts": [one.options[answer] for one, answer in zip(task.questions, right, strict=True)],
        "rows": prediction_rows(task.name, task.questions, prediction),
        "truncated": prediction.truncated + _truncated(task),
        "left_out": prediction.left_out,
        "inverse_temperature": None if calibration is None else calibration.inverse_temperature,
    }


def _evaluation(outcomes: Sequence[Document]) -> Evaluation:
    """Every metric of every task and of all together."""
    predictions = {
        one["name"]: Predictions([row["probs"] for row in one["rows"]], one["answers"], one["texts"])
        for one in outcomes
    }
    inverse = {one["name"]: one["inverse_temperature"] for one in outcomes}
    metrics = {name: evaluate_task(*one) for name, one in predictions.items()}
    return Evaluation(
        tasks=metrics,
        mean=mean_over_tasks(metrics),
        pooled=pooled(predictions),
        predictions=[row for one in outcomes for row in one["rows"]],
        truncated=sum(one["truncated"] for one in outcomes),
        left_out=sum(one["left_out"] for one in outcomes),
        inverse_temperatures={name: value for name, value in inverse.items() if value is not None},
    )


def _refuse_names(tasks: Sequence[Task]) -> None:
    if len({task.name for task in tasks}) < max(len(tasks), 1):
        raise DataError("evaluation needs at least one task, and tasks of different names")


def _truncated(task: AdaptedTask) -> int:
    """The examples adapted to whose input was cut."""
    return sum(one.truncated > 0 for one in task.posterior.scorer.encode(task.support, task.name))


def prediction_rows(task_name: str, examples: Sequence[Example], prediction: Prediction) -> list[Document]:
    """One JSON-ready row per example: probabilities of its options, the answer chosen, and the uncertainties."""
    columns = {
        "probs": prediction.lists(),
        "prediction": prediction.answers.tolist(),
        "answer": [example.answer for example in examples],
        "entropy": prediction.entropy.tolist(),
        "expected_entropy": prediction.expected_entropy.tolist(),
        "mutual_information": prediction.mutual_information.tolist(),
    }
    return [
        {"task": task_name, "id": example.id} | dict(zip(columns, values, strict=True))
        for example, *values in zip(examples, *columns.values(), strict=True)
    ]


def save_evaluation(
    evaluation: Evaluation, folder: Path, model: AbmllModel, config: EvaluateConfig, about: Document
) -> None:
    """Write ``metrics.json`` and ``predictions.jsonl``; ``about`` names run, suite and seed."""
    rule = find_rule(model.learning.method)
    document = {
        "method": rule.name,
        "label": rule.label,
        **about,
        "settings": model.scorer.settings() | flatten(model.learning, config),
        "versions": versions(),
        "truncated_prompts": evaluation.truncated,
        "demonstrations_left_out": evaluation.left_out,
        "tasks": evaluation.tasks,
        "mean": evaluation.mean,
        "pooled": evaluation.pooled,
    }
    write_json_lines(folder / "predictions.jsonl", evaluation.predictions)
    write_document(folder / "metrics.json", "evaluation", document)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {"abmll": __version__} | {name: version(name) for name in PACKAGES}


def commit() -> str | None:
    """The commit of this package's source, with ``+`` after changes; None where it is no checkout, or without git."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def _git(folder: Path, *words: str) -> str:
    run = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()
