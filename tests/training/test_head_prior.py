"""The tasks that the head's prior is learned from: what is learned, what is predicted, what is read."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import LearningConfig
from abmll.language.meter import counted
from abmll.posterior.head_learning import Episode
from abmll.posterior.hypotheses import HeadPrior
from abmll.tasks import Task
from abmll.training.head_prior import learn_head_prior


@pytest.fixture
def episodes(monkeypatch: pytest.MonkeyPatch) -> list[Episode]:
    """What the prior would be learned from; nothing is learned."""
    seen: list[Episode] = []

    def spy(found: list[Episode], start: HeadPrior, on_step: Any) -> HeadPrior:
        seen.extend(found)
        return start

    monkeypatch.setattr("abmll.training.head_prior.learn_prior", spy)
    return seen


@pytest.fixture
def model(tiny_model: AbmllModel) -> AbmllModel:
    tiny_model.learned(tiny_model.theta, LearningConfig(method="meta-head"), 3)
    return tiny_model


def test_as_many_examples_are_predicted_as_are_learned_and_none_is_both(
    model: AbmllModel, toy_tasks: list[Task], episodes: list[Episode]
) -> None:
    with counted(model.scorer) as cost:
        learn_head_prior(model, toy_tasks, num_tasks=2, num_examples=5)
    assert len(episodes) == 2
    assert cost.gradient_passes == 0
    for one in episodes:
        assert (one.support.is_labelled, one.query.is_labelled) == (True, True)
        assert one.support.scores.shape == one.query.scores.shape == (5, 2, 3)
        assert (one.answers.shape, one.query_answers.shape) == ((5,), (5,))
        rows = torch.cat([one.support.hidden, one.query.hidden]).flatten(1)
        assert len(rows.unique(dim=0)) == 10


def test_a_task_with_few_examples_is_halved(model: AbmllModel, toy_tasks: list[Task], episodes: list[Episode]) -> None:
    few = replace(toy_tasks[0], examples=tuple(replace(one, split="train") for one in toy_tasks[0].examples[:7]))
    learn_head_prior(model, [few], num_tasks=3, num_examples=5)
    assert [len(one.answers) for one in episodes] == [3]


def test_answers_are_columns_of_the_sorted_labels(
    model: AbmllModel, toy_tasks: list[Task], episodes: list[Episode]
) -> None:
    """The labels turned round in every example: the same columns, and the same right ones."""
    turned = tuple(
        replace(one, options=one.options[::-1], answer=None if one.answer is None else 1 - one.answer)
        for one in toy_tasks[0].examples
    )
    for task in (toy_tasks[0], replace(toy_tasks[0], examples=turned)):
        learn_head_prior(model, [task], num_tasks=1, num_examples=5)
    first, second = episodes
    assert torch.equal(first.answers, second.answers)
    torch.testing.assert_close(first.support.scores, second.support.scores, rtol=1e-5, atol=1e-5)


def test_options_that_differ_have_no_labels(model: AbmllModel, toy_tasks: list[Task], episodes: list[Episode]) -> None:
    other = tuple(replace(one, options=(*one.options, one.id)) for one in toy_tasks[0].examples)
    learn_head_prior(model, [replace(toy_tasks[0], examples=other)], num_tasks=1, num_examples=5)
    assert [one.support.is_labelled for one in episodes] == [False]


def test_the_seed_draws_the_tasks(model: AbmllModel, toy_tasks: list[Task], episodes: list[Episode]) -> None:
    for seed in (0, 0, 1, 2, 3):
        learn_head_prior(model, toy_tasks, num_tasks=1, num_examples=4, seed=seed)
    first, again, *others = episodes
    assert torch.equal(first.support.hidden, again.support.hidden)
    assert any(not torch.equal(first.support.hidden, one.support.hidden) for one in others)
