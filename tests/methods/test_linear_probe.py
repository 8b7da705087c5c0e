"""Linear probes against scikit-learn called by hand, and batch calibration against NumPy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abmll import AbmllModel, Prediction
from abmll.common.config import LearningConfig, PromptConfig
from abmll.methods.linear_probe import Probe, TemperedProbe
from abmll.model.prediction import batch_calibrated, predict
from abmll.posterior.hypotheses import HeadPrior, Known
from abmll.tasks import Task

linear_model = pytest.importorskip("sklearn.linear_model")
model_selection = pytest.importorskip("sklearn.model_selection")

ANSWERS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1, 0, 2, 0, 1, 2])
SIZE = len(ANSWERS)


def known(size: int, seed: int = 0, options: int = 3, is_labelled: bool = True) -> Known:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, 2, 4, generator=generator)
    return Known(hidden, torch.randn(size, options, 2, generator=generator).double(), is_labelled)


def telling(seed: int = 0) -> Known:
    """Examples whose features tell the answer, but not always."""
    support = known(SIZE, seed)
    support.hidden[:, 0, :3] += 1.5 * torch.nn.functional.one_hot(ANSWERS)
    return support


def rows(support: Known, asked: Known) -> Any:
    """The questions' features by hand: each depth of length one, less the examples' mean, over their spread."""
    first, other = (
        (one.hidden.double() / one.hidden.double().norm(dim=-1, keepdim=True)).flatten(1).numpy()
        for one in (support, asked)
    )
    mean = first.mean(0)
    return (other - mean) / math.sqrt(((first - mean) ** 2).sum(1).mean())


def searched(inputs: Any, labels: Any, folds: int) -> Any:
    """scikit-learn's regression, its strength by cross-validation."""
    grid = {"C": [0.1, 1.0, 10.0, 100.0]}
    model = linear_model.LogisticRegression(max_iter=1000)
    return model_selection.GridSearchCV(model, grid, scoring="neg_log_loss", cv=folds).fit(inputs, labels)


def test_probabilities_are_scikit_learns() -> None:
    support, asked = telling(), known(5, 1)
    model = searched(rows(support, support), ANSWERS.numpy(), 4)  # the rarest label occurs four times
    found = Probe(HeadPrior(), support, ANSWERS).probs(asked)
    assert found.shape == (1, 5, 3)
    torch.testing.assert_close(found[0], torch.from_numpy(model.predict_proba(rows(support, asked))))


def test_the_temperature_is_scikit_learns_too() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    support, asked = telling(), known(5, 1)
    inputs, labels = rows(support, support), ANSWERS.numpy()
    best = searched(inputs, labels, 4).best_estimator_
    model = calibration.CalibratedClassifierCV(best, method="temperature", cv=4, ensemble=False).fit(inputs, labels)
    found = TemperedProbe(HeadPrior(), support, ANSWERS).probs(asked)[0]
    torch.testing.assert_close(found, torch.from_numpy(model.predict_proba(rows(support, asked))))
    plain = Probe(HeadPrior(), support, ANSWERS).probs(asked)[0]
    assert float((found - plain).abs().max()) > 0.01


def test_a_temperature_changes_no_order() -> None:
    """Log-probabilities, less their mean, are those of the plain probe times one number."""
    support, asked = telling(), known(5, 1)
    plain, tempered = (
        torch.log(kind(HeadPrior(), support, ANSWERS).probs(asked)[0]) for kind in (Probe, TemperedProbe)
    )
    plain, tempered = (one - one.mean(-1, keepdim=True) for one in (plain, tempered))
    ratio = tempered / plain
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Probe, TemperedProbe])
def test_a_label_that_occurs_once_allows_no_folds(kind: type[Probe]) -> None:
    answers = torch.tensor([0] * 7 + [1] * 6 + [2])
    support, asked = known(SIZE), known(5, 1)
    model = linear_model.LogisticRegression(max_iter=1000).fit(rows(support, support), answers.numpy())
    wanted = torch.from_numpy(model.predict_proba(rows(support, asked)))
    torch.testing.assert_close(kind(HeadPrior(), support, answers).probs(asked)[0], wanted)


@pytest.mark.parametrize("kind", [Probe, TemperedProbe])
def test_labels_without_examples_get_the_rule_of_succession(kind: type[Probe]) -> None:
    """Five labels, of which the examples have the second and the fourth."""
    support, asked = known(SIZE, options=5), known(5, 1, options=5)
    answers = torch.where(ANSWERS > 0, 3, 1)
    found = kind(HeadPrior(), support, answers).probs(asked)[0]
    torch.testing.assert_close(found[:, [0, 2, 4]], torch.full((5, 3), 1 / (SIZE + 5)).double())
    two = kind(HeadPrior(), support._replace(scores=support.scores[:, :2]), (answers == 3).long())
    seen = two.probs(asked._replace(scores=asked.scores[:, :2]))[0]
    torch.testing.assert_close(found[:, [1, 3]], seen * (1 - 3 / (SIZE + 5)))


@pytest.mark.parametrize("kind", [Probe, TemperedProbe])
def test_a_single_label_is_all_that_is_known(kind: type[Probe]) -> None:
    found = kind(HeadPrior(), known(4), torch.full((4,), 2)).probs(known(2, 1))[0]
    wanted = torch.tensor([1 / 7, 1 / 7, 5 / 7]).double()
    torch.testing.assert_close(found, wanted.expand(2, 3))


def test_of_some_of_the_labels_one_is_right() -> None:
    support, asked = telling(), known(3, 1)
    probe = Probe(HeadPrior(), support, ANSWERS)
    whole = probe.probs(asked)[0]
    asked.scores[0, 1] = -torch.inf
    found = probe.probs(asked)[0]
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0, 1.0]).double() * whole[0] / whole[0, [0, 2]].sum())
    torch.testing.assert_close(found[1:], whole[1:])


def open_known(size: int, seed: int) -> Known:
    """Three options, of which every other question has two."""
    found = known(size, seed, is_labelled=False)
    found.scores[::2, 2] = -torch.inf
    return found


def options(asked: Known) -> tuple[Any, Tensor]:
    """The scores of each option that there is, less their mean over its question's options; and where it is."""
    present = ~asked.scores[..., 0].isneginf()
    values = [row[own] - row[own].mean(0) for row, own in zip(asked.scores, present, strict=True)]
    return torch.cat(values).numpy(), present


def test_options_that_differ_are_each_right_or_wrong() -> None:
    support, asked, answers = open_known(12, 0), open_known(5, 1), torch.tensor([0, 1, 1, 2] * 3)
    answers[::2] %= 2
    inputs, present = options(support)
    right = (torch.arange(3) == answers[:, None])[present].long().numpy()
    model = searched(inputs, right, 5)
    inputs, present = options(asked)
    wanted = torch.zeros(5, 3).double()
    wanted[present] = torch.from_numpy(model.predict_proba(inputs)[:, 1])
    wanted /= wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(Probe(HeadPrior(), support, answers).probs(asked)[0], wanted)


def test_open_questions_may_have_more_options_than_the_examples() -> None:
    probe = Probe(HeadPrior(), open_known(12, 0), torch.tensor([0, 1] * 6))
    found = probe.probs(known(2, 1, options=5, is_labelled=False))[0]
    torch.testing.assert_close(found.sum(-1), torch.ones(2).double())
    assert found.shape == (2, 5)


@pytest.mark.parametrize("method", ["linear-probe", "linear-probe-temperature"])
def test_it_is_a_method_as_any_other(tiny_llama: Path, toy_tasks: list[Task], method: str) -> None:
    prompt = PromptConfig(instruction=False, list_options=False, answer="text")
    model = AbmllModel.from_base(str(tiny_llama), prompt=prompt, r=2)
    model.learned(model.theta, LearningConfig(method=method), 1)
    task = toy_tasks[0]
    prediction = model.adapt(task.train[:12], task_name=task.name).predict(task.test[:4])
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(4).double())
    assert float(prediction.mutual_information.abs().max()) == 0.0


def test_batch_calibration_by_hand() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])
    mean = probs.mean(0)
    wanted = torch.from_numpy(probs / mean / (probs / mean).sum(1, keepdims=True))
    given = Prediction(torch.from_numpy(probs), torch.tensor([3, 3, 3]), torch.zeros(3), torch.zeros(3), 2, 1)
    found = batch_calibrated(given)
    torch.testing.assert_close(found.probs, wanted)
    torch.testing.assert_close(found.entropy, -(wanted * wanted.log()).sum(-1))
    assert torch.equal(found.expected_entropy, found.entropy)
    assert (found.truncated, found.left_out) == (2, 1)


def test_batch_calibration_leaves_absent_options_out() -> None:
    probs = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]]).double()
    given = Prediction(probs, torch.tensor([2, 3]), torch.zeros(2), torch.zeros(2))
    over = probs / torch.tensor([0.4, 0.35, 0.5]).double()
    torch.testing.assert_close(batch_calibrated(given).probs, over / over.sum(-1, keepdim=True))


def test_in_context_answers_are_calibrated_over_all_questions(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    task, asked = toy_tasks[0], toy_tasks[0].test[:5]
    tiny_model.learned(tiny_model.theta, LearningConfig(method="icl-batch", num_demonstrations=3), 1)
    posterior = tiny_model.adapt(task.train[:8], task_name=task.name, seed=5)
    assert len(posterior.demonstrations) == 3
    encoder = tiny_model.scorer.encoder
    prompted, _ = encoder.encode_demonstrated(asked, task.name, posterior.demonstrations)
    plain = predict(tiny_model.scorer, [posterior.phi], prompted).probs.numpy()
    over = plain / plain.mean(0)
    wanted = torch.from_numpy(over / over.sum(1, keepdims=True))
    torch.testing.assert_close(posterior.predict(asked).probs, wanted)
    assert float((wanted - torch.from_numpy(plain)).abs().max()) > 1e-3
