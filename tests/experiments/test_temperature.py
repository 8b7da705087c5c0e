"""Temperatures: a known one is recovered, the optimum is scipy's, and nothing is fitted on what was adapted to."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from abmll import AbmllModel
from abmll.common.config import EvaluateConfig
from abmll.common.errors import DataError
from abmll.experiments.temperature import QUESTIONS, Unseen, fit_temperature, meta_temperature, tempered
from abmll.model.prediction import Prediction, entropy
from abmll.tasks import Example, Task
from abmll.tasks.order import permutation


def world(count: int, temperature: float, seed: int = 0) -> Unseen:
    """Answers drawn from softmax(logits), probabilities given as softmax(temperature-less logits * T)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    logits[::3, 3] = -torch.inf  # examples of three options
    answers = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]
    return Unseen(torch.softmax(logits * temperature, -1), answers)


def loss(unseen: Sequence[Unseen], temperature: float) -> float:
    total = 0.0
    for group in unseen:
        log_probs = torch.log_softmax(group.probs.log() / temperature, -1)
        total -= float(log_probs.gather(1, group.answers[:, None]).sum())
    return total


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    """Log-probabilities that are T times too large need T."""
    assert fit_temperature([world(20_000, temperature)]) == pytest.approx(temperature, rel=0.03)


def test_the_fit_is_the_minimum_over_all_groups() -> None:
    groups = [world(50, 2.0), world(30, 0.7, seed=1)]
    found = fit_temperature(groups)
    wanted: Any = minimize_scalar(
        lambda t: loss(groups, t), bounds=(0.1, 10.0), method="bounded", options={"xatol": 1e-8}
    )
    assert found == pytest.approx(wanted.x, rel=1e-5)
    assert 0.2 < found < 8


def probs(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_what_tells_nothing_more_ends_at_a_bound() -> None:
    right, wrong = torch.tensor([0]), torch.tensor([1])
    assert fit_temperature([Unseen(probs([0.7, 0.3]), right)]) == pytest.approx(0.1)
    assert fit_temperature([Unseen(probs([0.7, 0.3]), wrong)]) == pytest.approx(10.0)
    assert fit_temperature([Unseen(probs([1.0, 0.0]), wrong)]) == pytest.approx(10.0)  # without any chance
    with pytest.raises(DataError, match="no predictions to fit"):
        fit_temperature([])


def test_tempering_changes_confidence_and_nothing_else() -> None:
    before = probs([0.7, 0.2, 0.1], [0.5, 0.5, 0.0])
    expected = entropy(before) - torch.tensor([0.1, 0.0])
    prediction = Prediction(before, torch.tensor([3, 2]), entropy(before), expected, truncated=4)
    after = tempered(prediction, 2.0)
    root = before.sqrt()
    torch.testing.assert_close(after.probs, root / root.sum(-1, keepdim=True))
    torch.testing.assert_close(after.entropy, entropy(after.probs))
    torch.testing.assert_close(after.mutual_information, prediction.mutual_information)
    assert torch.equal(after.answers, prediction.answers)
    assert after.lists()[1] == [0.5, 0.5]
    assert after.truncated == 4
    torch.testing.assert_close(tempered(prediction, 1.0).probs, before)


class Recorder:
    """Stands for a model: remembers what it adapts to and predicts, and answers with fixed probabilities."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], list[str], dict[str, Any]]] = []

    def adapt(self, examples: Sequence[Example], *, task_name: str, **settings: Any) -> Any:
        calls = self.calls

        class Learned:
            def predict(self, questions: Sequence[Example], how: Any, **also: Any) -> Prediction:
                support, asked = ([one.id for one in some] for some in (examples, questions))
                calls.append((task_name, support, asked, settings))
                rows = probs(*[[0.8, 0.2]] * len(questions))
                return Prediction(rows, torch.full((len(questions),), 2), entropy(rows), entropy(rows))

        return Learned()


def task(name: str, train: int, right: Sequence[bool]) -> Task:
    """Examples to adapt to, and test examples whose likelier option is right or not."""
    support = [Example(f"train{n}", "?", ("a", "b"), 0, "train") for n in range(train)]
    test = [Example(f"test{n}", "?", ("a", "b"), 0 if one else 1, "test") for n, one in enumerate(right)]
    return Task(name, tuple(support + test))


def test_meta_adapts_to_each_task_and_pools_their_held_out_examples() -> None:
    model: Any = Recorder()
    tasks = [task("one", 3, [True] * 2), task("none", 3, []), task("two", 5, [True] * 4 + [False] * 4)]
    config = EvaluateConfig(steps=7, batch_size=3, adapt_examples=4)
    found = meta_temperature(model, tasks, config, seed=1)
    assert [(name, len(support), len(asked)) for name, support, asked, _ in model.calls] == [
        ("one", 3, 2),
        ("two", 4, 8),
    ]
    assert all(identity.startswith("train") for _, support, _, _ in model.calls for identity in support)
    assert model.calls[0][3] == {"steps": 7, "batch_size": 3, "seed": 1, "cache": None}
    assert 0.8 ** (1 / found) / (0.8 ** (1 / found) + 0.2 ** (1 / found)) == pytest.approx(0.6)
    unknown = Task("t", tuple(replace(one, answer=None) for one in tasks[0].examples))
    with pytest.raises(DataError, match=r"task 't', example 'test.': has no answer to recalibrate with"):
        meta_temperature(model, [unknown], config)
    with pytest.raises(DataError, match="no predictions to fit"):
        meta_temperature(model, [], config)


def test_a_model_s_own_temperature_lowers_the_loss_it_was_fitted_to(
    tiny_model: AbmllModel, toy_tasks: list[Task]
) -> None:
    config = EvaluateConfig(steps=1, num_samples=0, adapt_examples=None)
    found = meta_temperature(tiny_model, toy_tasks, config)
    assert 0.1 <= found <= 10
    unseen = []
    for one in toy_tasks:
        support = [one.train[n] for n in permutation(len(one.train), 0, "temperature", "train")]
        questions = [one.test[n] for n in permutation(len(one.test), 0, "temperature", "test")[:QUESTIONS]]
        posterior = tiny_model.adapt(support, task_name=one.name, steps=1)
        answers = torch.tensor([question.answer for question in questions])
        unseen.append(Unseen(posterior.predict(questions, samples=0).probs, answers))
    assert loss(unseen, found) <= min(loss(unseen, 10 ** (power / 10)) for power in range(-10, 11)) + 1e-6
