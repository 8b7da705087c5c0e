"""Out-of-distribution inputs: whose they are, and how well doubt tells them apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from abmll.experiments.metrics import auroc
from abmll.experiments.out_of_distribution import ood_questions, separation
from abmll.model.prediction import Prediction
from abmll.tasks import Task


def prediction(entropy: list[float], information: list[float]) -> Prediction:
    total = torch.tensor(entropy, dtype=torch.float64)
    return Prediction(
        probs=torch.full((len(entropy), 2), 0.5, dtype=torch.float64),
        num_options=torch.full((len(entropy),), 2),
        entropy=total,
        expected_entropy=total - torch.tensor(information, dtype=torch.float64),
    )


def test_a_foreign_question_has_its_own_options_and_another_tasks_input(toy_tasks: list[Task]) -> None:
    questions = {task.name: list(task.test) for task in toy_tasks}
    ood = ood_questions(toy_tasks, questions, 3)
    first, second, third = toy_tasks
    for task, donor in ((first, second), (second, third), (third, first)):
        assert len(ood[task.name]) == 3
        for own, other, made in zip(task.test, donor.test, ood[task.name], strict=False):
            assert (made.input, made.options, made.answer) == (other.input, own.options, None)


def test_the_input_comes_from_another_family_if_there_is_one(toy_tasks: list[Task]) -> None:
    first, second, third = toy_tasks
    tasks = [replace(first, family="a"), replace(second, family="a"), replace(third, family="b")]
    questions = {task.name: list(task.test) for task in tasks}
    ood = ood_questions(tasks, questions, 1)
    assert ood[first.name][0].input == third.test[0].input
    assert ood[third.name][0].input == first.test[0].input
    assert ood_questions(tasks[:1], questions, 1) == {first.name: []}
    assert ood_questions(tasks, questions, 0) == {task.name: [] for task in tasks}


def test_the_separation_is_the_chance_that_a_foreign_input_is_doubted_more() -> None:
    # multiples of 1/16, so that equals are equal
    own, ood = prediction([0.25, 0.5, 0.75], [0.0, 0.125, 0.25]), prediction([0.625, 1.0], [0.125, 0.0625])
    found = separation(own, ood)
    assert found["entropy"] == pytest.approx(5 / 6)  # of six pairs one is the other way round
    assert found["mutual_information"] == pytest.approx((2 * 1 + 0.5 + 0.0) / 6)
    labels = np.array([0.0, 0.0, 0.0, 1.0, 1.0])
    assert found["entropy"] == auroc(np.array([0.25, 0.5, 0.75, 0.625, 1.0]), labels)


def test_where_nothing_disagrees_mutual_information_says_nothing() -> None:
    assert separation(prediction([0.1], [0.0]), prediction([0.2], [0.0])) == {
        "entropy": 1.0,
        "mutual_information": None,
    }
