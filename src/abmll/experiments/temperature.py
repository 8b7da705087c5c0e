"""Post-hoc recalibration: one temperature for all tasks on the predicted log-probabilities, softmax(log p / T).

It is fitted on test examples of the training tasks, which no run has read, after adapting to each of these tasks as to
an unseen one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.common.config import EvaluateConfig
from abmll.common.errors import DataError
from abmll.experiments.few_shot import adapt_to
from abmll.language.activation_cache import ActivationCache
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import Prediction, entropy
from abmll.posterior.calibration import log_probs
from abmll.posterior.numerics import bisect
from abmll.tasks import Example, Task
from abmll.tasks.order import permutation

COLDEST, HOTTEST = 0.1, 10.0
HALVINGS = 60
QUESTIONS = 30  # of each training task


@dataclass(frozen=True)
class Unseen:
    """Probabilities (N, C) of examples that were not adapted to, zero where an example has no such option."""

    probs: Tensor
    answers: Tensor  # (N,)


def meta_temperature(
    model: AbmllModel,
    tasks: Sequence[Task],
    config: EvaluateConfig,
    *,
    seed: int = 0,
    cache: ActivationCache | None = None,
) -> float:
    """One temperature from the training ``tasks`` that have test examples; every example counts the same.

    Raises ``DataError`` without such tasks, and for a test example without an answer.
    """
    return fit_temperature(
        [_predicted(model, task, config, seed, cache) for task in tasks if len(task.train) and len(task.test)]
    )


def _predicted(
    model: AbmllModel, task: Task, config: EvaluateConfig, seed: int, cache: ActivationCache | None
) -> Unseen:
    """Adapt to training examples of a training task, and predict some of its test examples."""
    support = _drawn(task.train, config.adapt_examples, seed, "train")
    questions = _drawn(task.test, QUESTIONS, seed, "test")
    answers = []
    for question in questions:
        if question.answer is None:
            raise DataError(f"task '{task.name}', example '{question.id}': has no answer to recalibrate with")
        answers.append(question.answer)
    prediction = adapt_to(model, task.name, support, questions, config, seed=seed, cache=cache).predict()
    return Unseen(prediction.probs, torch.tensor(answers))


def _drawn(examples: Sequence[Example], limit: int | None, seed: int, side: str) -> list[Example]:
    return [examples[index] for index in permutation(len(examples), seed, "temperature", side)[:limit]]


def fit_temperature(unseen: Sequence[Unseen]) -> float:
    """The T between 0.1 and 10 that minimises -sum log softmax(log p / T)[answer] over all examples of all groups.

    Convex in b = 1 / T, whose derivative, sum E_b[log p] - log p[answer], grows with b: its root is found by bisection
    in float64. It is a bound where the examples say nothing more, as when every answer was the likeliest.
    Raises ``DataError`` without examples.
    """
    logs = [log_probs(group.probs) for group in unseen]
    if not sum(map(len, logs)):
        raise DataError("there are no predictions to fit a temperature to")
    answers = [group.answers.cpu() for group in unseen]

    def slope(log_inverse: float) -> float:
        return sum(_slope(log, answer, math.exp(log_inverse)) for log, answer in zip(logs, answers, strict=True))

    return math.exp(-bisect(slope, math.log(1 / HOTTEST), math.log(1 / COLDEST), HALVINGS))


def _slope(logs: Tensor, answers: Tensor, inverse: float) -> float:
    """d NLL / d b at b = ``inverse``."""
    weights = torch.softmax(inverse * logs, -1)
    expected = (weights * logs.masked_fill(logs.isneginf(), 0.0)).sum(-1)
    floor = math.log(torch.finfo(torch.float64).tiny)  # an answer of probability zero
    right = logs.gather(-1, answers[:, None])[:, 0].clamp_min(floor)
    return float((expected - right).sum())


def tempered(prediction: Prediction, temperature: float) -> Prediction:
    """The prediction at another temperature.

    It acts on the averaged probabilities, so that the samples' own entropies are unknown: the mutual information stays
    what it was, as far as the new entropy has room for it.
    """
    probs = torch.softmax(log_probs(prediction.probs) / temperature, -1)
    total = entropy(probs)
    expected = (total - prediction.mutual_information).clamp(min=0.0)
    return replace(prediction, probs=probs, entropy=total, expected_entropy=expected)
