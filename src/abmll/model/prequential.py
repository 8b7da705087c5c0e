"""The calibration of a task: inferred from what the model answered while it was being learned.

While a task is learned, every batch is answered before it is learned from. These answers cost nothing, and none of them
was seen before: they are the evidence for the task's inverse temperature and biases (prequential, Dawid 1984). What to
expect before any evidence theta knows (``abmll.training.empirical_bayes``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from abmll.common.documents import Document
from abmll.common.errors import CheckpointError
from abmll.posterior.calibration import Calibration, CalibrationPrior, Evidence, infer
from abmll.tasks import Example

Answers = tuple[Sequence[int], Tensor]  # which examples were asked, and the log-probabilities (N, C) of their options
LEAST = math.log(torch.finfo(torch.float64).tiny)  # of an option that has been given no chance at all


@dataclass(frozen=True)
class TaskCalibration(Calibration):
    """A task's calibration; ``labels`` are the options that have a bias, in its order.

    Raises ``ValueError`` where there are not as many of them as biases.
    """

    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels and len(self.labels) != len(self.mean) - 1:
            raise ValueError(f"{len(self.labels)} labels for {len(self.mean) - 1} biases")

    def calibrate(self, examples: Sequence[Example], at_mean: bool, probs: Tensor, index: Tensor) -> Tensor:
        """``Calibration.read`` of the probabilities (S, N, C) of those ``examples`` that ``index`` (N,) names."""
        chosen = [examples[number] for number in index.tolist()]
        return self.read(probs, label_index(chosen, self.labels, probs.shape[-1]), at_mean)

    def describe(self) -> str:
        """The inverse temperature in a few words: at the mean, how far it is known, and whether it is any."""
        slopes = self.points[:, 0]
        silent = float((slopes == 0).double().mean())
        return f"{float(slopes.mean()):.2f}, known to {float(slopes.std()):.2f}; zero with probability {silent:.2f}"

    def document(self) -> Document:
        """As JSON has it."""
        return {"points": self.points.tolist(), "labels": list(self.labels)}

    @classmethod
    def of(cls, document: Document, where: Path) -> "TaskCalibration":
        """What ``document`` has said. Raises ``CheckpointError`` where it is no calibration."""
        try:
            return cls(torch.tensor(document["points"], dtype=torch.float64), tuple(map(str, document["labels"])))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{where}: its calibration cannot be used ({error}); adapt to the task again"
            ) from error


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """The options, where all examples have the same ones in whatever order; else, or where there are none, none."""
    first = examples[0].asked
    return tuple(first) if all(sorted(one.asked) == sorted(first) for one in examples) else ()


def label_index(examples: Sequence[Example], labels: Sequence[str], width: int) -> Tensor:
    """(N, ``width``): where each option of each example stands among ``labels``; -1 if it does not."""
    places = {label: place for place, label in enumerate(labels)}
    index = torch.full((len(examples), width), -1)
    for row, example in enumerate(examples):
        for column, option in enumerate(example.options):
            index[row, column] = places.get(option, -1)
    return index


def evidence(examples: Sequence[Example], given: Sequence[Answers], labels: Sequence[str] | None = None) -> Evidence:
    """The answers that were ``given`` to ``examples``, options in the order of the ``labels`` (None: ``labels_of``).

    An example that was asked several times counts with its first answer: afterwards it had been learned from.
    """
    labels = labels_of(examples) if labels is None else labels
    width = max(len(example.options) for example in examples)
    rows: dict[int, Tensor] = {}
    for asked, logs in given:
        for number, row in zip(asked, logs.double().cpu(), strict=True):
            full = torch.full((width,), -torch.inf, dtype=torch.float64)
            for column, option in enumerate(examples[number].options):
                full[labels.index(option) if labels else column] = row[column].clamp(min=LEAST)
            rows.setdefault(number, full)
    answers = answer_columns([examples[number] for number in rows], labels)
    logs = torch.stack(list(rows.values())) if rows else torch.empty(0, width, dtype=torch.float64)
    return Evidence(logs, answers, bool(labels))


def infer_calibration(prior: CalibrationPrior, examples: Sequence[Example], prequential: Evidence) -> TaskCalibration:
    """A task's calibration from what its ``examples`` were answered; the prior itself without any evidence."""
    return TaskCalibration(infer(prior, prequential).points, labels_of(examples))


def answer_columns(examples: Sequence[Example], labels: Sequence[str]) -> Tensor:
    """(N,): the right option's place among the labels, or among the example's options where there are none."""
    return torch.tensor([_answer(example, labels) for example in examples], dtype=torch.long)


def _answer(example: Example, labels: Sequence[str]) -> int:
    assert example.answer is not None
    return labels.index(example.options[example.answer]) if labels else example.answer
