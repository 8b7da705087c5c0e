"""Adapting to unseen tasks and measuring what comes of it, task by task."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from abmll._version import __version__
from abmll.common.config import EvaluateConfig
from abmll.common.errors import DataError
from abmll.common.files import write_json, write_text
from abmll.common.progress import progress
from abmll.common.settings import flatten
from abmll.experiments.metrics import Predictions, evaluate_task, mean_over_tasks, pooled
from abmll.experiments.out_of_distribution import UNCERTAINTIES, ood_questions, separation
from abmll.experiments.pruning import pruned
from abmll.language.activation_cache import ActivationCache
from abmll.methods import find_rule
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import Prediction
from abmll.tasks import Example, Task
from abmll.tasks.order import permutation

FORMAT = "abmll-evaluation-2"
PACKAGES = ("torch", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """Metrics per task, over all of them, and every single prediction."""

    tasks: dict[str, dict[str, Any]]
    mean: dict[str, Any]
    pooled: dict[str, Any]
    predictions: list[dict[str, Any]]
    truncated: int  # prompts whose input was cut
    left_out: int  # demonstrations that did not fit before a question, over all of them
    seconds: dict[str, float]  # "adapting" and "predicting", over all tasks
    ood: dict[str, dict[str, float | None]]  # by task, how well each uncertainty tells another task's inputs apart
    inverse_temperatures: dict[str, float]  # of the tasks that have a calibration, at its mean

    @property
    def ood_mean(self) -> dict[str, float | None]:
        """The mean over tasks of each uncertainty's AUROC; None where no task has one."""
        known = {name: [one[name] for one in self.ood.values()] for name in UNCERTAINTIES}
        numbers = {name: [value for value in values if value is not None] for name, values in known.items()}
        return {name: sum(values) / len(values) if values else None for name, values in numbers.items()}


Recalibrate = Callable[[str, Sequence[Example]], Callable[[Prediction], Prediction]]


def evaluate_tasks(
    model: AbmllModel,
    tasks: Sequence[Task],
    config: EvaluateConfig,
    *,
    seed: int = 0,
    cache: ActivationCache | None = None,
    quiet: bool = True,
    prune: float = 0.0,
    recalibrate: Recalibrate | None = None,
    ood_examples: int = 0,
) -> Evaluation:
    """Adapt to each task with some of its training examples, predict its test examples, and measure.

    The examples are chosen by ``seed`` alone, so that methods compared under one seed see the same ones.

    Args:
        prune: share of each adapted layer's output that is set to zero while predicting (see ``pruning``).
        recalibrate: given a task's name and the examples adapted to, says what becomes of its predictions.
        ood_examples: questions of each task that are asked again with another task's inputs (see ``ood``).

    Raises ``DataError`` for no tasks, two of one name, or one without labelled training or test examples.
    """
    chosen = {task.name: choose_examples(task, config, seed) for task in tasks}
    if len(chosen) < max(len(tasks), 1):
        raise DataError("evaluation needs at least one task, and tasks of different names")
    strangers = ood_questions(tasks, {name: asked for name, (_, asked) in chosen.items()}, ood_examples)
    ood: dict[str, dict[str, float | None]] = {}
    predictions: dict[str, Predictions] = {}
    rows: list[dict[str, Any]] = []
    inverse: dict[str, float] = {}
    truncated = left_out = 0
    seconds = {"adapting": 0.0, "predicting": 0.0}
    with progress(len(tasks), "adapting and predicting", "task", quiet=quiet) as bar:
        for name, (support, questions) in chosen.items():
            started = time.perf_counter()
            posterior = model.adapt(
                support, task_name=name, steps=config.steps, batch_size=config.batch_size, seed=seed, cache=cache
            )
            if posterior.calibration is not None and config.use_calibration:
                inverse[name] = posterior.calibration.inverse_temperature
            corrected = None if recalibrate is None else recalibrate(name, support)
            adapted = time.perf_counter()
            predict = partial(posterior.predict, how=config, seed=seed, cache=cache)
            with pruned(model.scorer, prune):
                prediction = predict(questions)
                predicted = time.perf_counter()
                doubted = predict(strangers[name]) if strangers[name] else None
            if corrected is not None:
                prediction, doubted = corrected(prediction), doubted and corrected(doubted)
            seconds["adapting"] += adapted - started
            seconds["predicting"] += predicted - adapted
            truncated += prediction.truncated
            left_out += prediction.left_out
            truncated += sum(one.truncated > 0 for one in model.scorer.encode(support, name))
            answers = [question.answer for question in questions if question.answer is not None]
            texts = [question.options[answer] for question, answer in zip(questions, answers, strict=True)]
            predictions[name] = Predictions(prediction.lists(), answers, texts)
            rows += prediction_rows(name, questions, prediction)
            if doubted is not None:
                ood[name] = separation(prediction, doubted)
            bar.update()
    metrics = {name: evaluate_task(*predictions) for name, predictions in predictions.items()}
    mean, together = mean_over_tasks(metrics), pooled(predictions)
    return Evaluation(metrics, mean, together, rows, truncated, left_out, seconds, ood, inverse)


def choose_examples(task: Task, config: EvaluateConfig, seed: int) -> tuple[list[Example], list[Example]]:
    """The examples to adapt to and those to be evaluated on: the first so many of a seeded order of either split."""
    sides = []
    for examples, limit, side in (
        (task.train, config.adapt_examples, "training"),
        (task.test, config.test_examples, "test"),
    ):
        if not examples or any(example.answer is None for example in examples):
            raise DataError(f"{task.source or task.name}: evaluation needs labelled {side} examples")
        order = permutation(len(examples), seed, "evaluation", side)
        sides.append([examples[index] for index in (order if limit is None else order[:limit])])
    return sides[0], sides[1]


def prediction_rows(task_name: str, examples: Sequence[Example], prediction: Prediction) -> list[dict[str, Any]]:
    """One JSON-ready row per example: probabilities of its options, the answer chosen, and the uncertainties."""
    columns = zip(
        examples,
        prediction.lists(),
        prediction.answers.tolist(),
        prediction.entropy.tolist(),
        prediction.expected_entropy.tolist(),
        prediction.mutual_information.tolist(),
        strict=True,
    )
    return [
        {
            "task": task_name,
            "id": example.id,
            "probs": probs,
            "prediction": chosen,
            "answer": example.answer,
            "entropy": entropy,
            "expected_entropy": expected_entropy,
            "mutual_information": information,
        }
        for example, probs, chosen, entropy, expected_entropy, information in columns
    ]


def save_evaluation(
    evaluation: Evaluation, folder: Path, model: AbmllModel, config: EvaluateConfig, about: dict[str, Any]
) -> None:
    """Write ``metrics.json`` and ``predictions.jsonl``; ``about`` names run, suite and seed."""
    rule = find_rule(model.learning.method)
    document = {
        "format": FORMAT,
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
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in evaluation.predictions)
    write_text(folder / "predictions.jsonl", lines)
    write_json(folder / "metrics.json", document)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {"abmll": __version__} | {name: version(name) for name in PACKAGES}
