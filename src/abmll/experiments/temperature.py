"""Post-hoc recalibration: one temperature on the predicted log-probabilities, softmax(log p / T).

Where it is fitted makes the difference. ``adaptation``: on a task's own adaptation examples, cross-fitted, since an
example that was adapted to is no longer unseen: adapt to one half and predict the other, both ways round. ``meta``: one
temperature for all tasks, on held-out examples of the training tasks after adapting to each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from abmll.common.config import AdaptConfig, PredictConfig
from abmll.common.errors import DataError
from abmll.language.activation_cache import ActivationCache
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import Prediction, entropy
from abmll.posterior.calibration import log_probs
from abmll.posterior.numerics import bisect
from abmll.tasks import Example
from abmll.tasks.order import permutation

COLDEST, HOTTEST = 0.1, 10.0
HALVINGS = 60


@dataclass(frozen=True)
class Unseen:
    """Probabilities (N, C) of examples that were not adapted to, zero where an example has no such option."""

    probs: Tensor
    answers: Tensor  # (N,)


def fit_temperature(unseen: Sequence[Unseen]) -> float:
    """The T between 0.1 and 10 that minimises -sum log softmax(log p / T)[answer] over all examples of all groups.

    Convex in b = 1 / T, whose derivative, sum E_b[log p] - log p[answer], grows with b: its root is found by bisection
    in float64. The bounds hold where the examples tell nothing more, as when every answer was the likeliest.
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
    floor = math.log(torch.finfo(torch.float64).tiny)  # an answer that was given no chance at all
    right = logs.gather(-1, answers[:, None])[:, 0].clamp_min(floor)
    return float((expected - right).sum())


def tempered(prediction: Prediction, temperature: float) -> Prediction:
    """The prediction at another temperature.

    It acts on the averaged probabilities, so the samples' own entropies are not known any more: the mutual information
    stays what it was, as far as the new entropy has room for it.
    """
    probs = torch.softmax(log_probs(prediction.probs) / temperature, -1)
    total = entropy(probs)
    expected = (total - prediction.mutual_information).clamp(min=0.0)
    return replace(prediction, probs=probs, entropy=total, expected_entropy=expected)


def adaptation_temperature(
    model: AbmllModel,
    examples: Sequence[Example],
    *,
    task_name: str = "task",
    adapt: AdaptConfig | None = None,
    how: PredictConfig | None = None,
    seed: int = 0,
    cache: ActivationCache | None = None,
) -> float:
    """The temperature of a task from its adaptation examples, cross-fitted over two halves.

    Both halves adapt with the settings of the whole. It costs two more adaptations, each to half the examples, which
    therefore know less than the one it is applied to. Raises ``DataError`` for fewer than two examples.
    """
    if len(examples) < 2:
        raise DataError(f"task '{task_name}': recalibration needs 2 adaptation examples or more")
    order = permutation(len(examples), seed, "recalibration")
    halves = [[examples[index] for index in order[side::2]] for side in (0, 1)]
    pairs = [(halves[0], halves[1]), (halves[1], halves[0])]
    return fit_temperature([_unseen(model, *pair, task_name, adapt, how, seed, cache) for pair in pairs])


def meta_temperature(
    model: AbmllModel,
    tasks: Mapping[str, tuple[Sequence[Example], Sequence[Example]]],
    *,
    adapt: AdaptConfig | None = None,
    how: PredictConfig | None = None,
    seed: int = 0,
    cache: ActivationCache | None = None,
) -> float:
    """One temperature from training tasks: by name, the examples to adapt to and the held-out ones to predict.

    Every example counts the same, whatever its task. Raises ``DataError`` without tasks.
    """
    return fit_temperature(
        [
            _unseen(model, support, held_out, name, adapt, how, seed, cache)
            for name, (support, held_out) in tasks.items()
        ]
    )


def _unseen(
    model: AbmllModel,
    support: Sequence[Example],
    questions: Sequence[Example],
    task_name: str,
    adapt: AdaptConfig | None,
    how: PredictConfig | None,
    seed: int,
    cache: ActivationCache | None,
) -> Unseen:
    """Adapt to ``support``, predict ``questions``. Raises ``DataError`` for a question without an answer."""
    adapt = adapt or AdaptConfig()
    shared: dict[str, Any] = {"seed": seed, "cache": cache}
    posterior = model.adapt(support, task_name=task_name, steps=adapt.steps, batch_size=adapt.batch_size, **shared)
    answers = []
    for question in questions:
        if question.answer is None:
            raise DataError(f"task '{task_name}', example '{question.id}': has no answer to recalibrate with")
        answers.append(question.answer)
    return Unseen(posterior.predict(questions, how, **shared).probs, torch.tensor(answers))
