"""Inputs of another domain: does a posterior doubt more where it was never meant to be asked?

Such a question has the options of one of the task's own questions and the input of another task's. No answer is right;
what is measured is how well the doubt alone tells these questions from the task's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from abmll.experiments.metrics import auroc
from abmll.model.prediction import Prediction
from abmll.tasks import Example, Task

UNCERTAINTIES = ("entropy", "mutual_information")


def ood_questions(
    tasks: Sequence[Task], questions: Mapping[str, Sequence[Example]], count: int
) -> dict[str, list[Example]]:
    """By task, at most ``count`` of its first questions with the inputs of another task's first questions.

    The inputs come from the next task in order that is of another family, or from the next one where all are of the
    same; without a second task there are none.
    """
    ood: dict[str, list[Example]] = {}
    for place, task in enumerate(tasks):
        others = [*tasks[place + 1 :], *tasks[:place]]
        donor = next((other for other in others if other.family != task.family), others[0] if others else None)
        pairs = zip(questions[task.name][:count], questions[donor.name] if donor else (), strict=False)
        ood[task.name] = [replace(own, id=other.id, input=other.input, answer=None) for own, other in pairs]
    return ood


def separation(own: Prediction, ood: Prediction) -> dict[str, float | None]:
    """AUROC of each uncertainty as a score for being out of distribution: 0.5 says nothing, 1 tells all of them apart.

    None for a mutual information that is zero everywhere, as that of a single set of weights is.
    """
    scores = {name: torch.cat([getattr(own, name), getattr(ood, name)]).numpy() for name in UNCERTAINTIES}
    labels = np.concatenate([np.zeros(len(own.probs)), np.ones(len(ood.probs))])
    return {name: auroc(score, labels) if score.any() else None for name, score in scores.items()}


def mean_separation(tasks: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean over tasks of each uncertainty's AUROC; None where no task has one."""
    known = {name: [value for one in tasks.values() if (value := one[name]) is not None] for name in UNCERTAINTIES}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}
