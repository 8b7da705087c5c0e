"""Requests to many tasks answered together, against what each posterior says by itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel, Prediction, TaskPosterior
from abmll.common.config import PredictConfig
from abmll.common.errors import ConfigError, DataError
from abmll.language.adapter import Adapter
from abmll.language.scorer import OptionScorer
from abmll.model import prediction
from abmll.model.prequential import TaskCalibration
from abmll.model.together import Request, predict_together
from abmll.tasks import Example
from tests.model.conftest import MakeModel, learned, unpack

LABELS = ("no", "yes", "perhaps", "never", "of course")


def asked(
    model: AbmllModel, number: int, members: int = 1, questions: int = 1, labels: int = 2, is_posterior: bool = True
) -> Request:
    """Questions of unlike length to a task with so many labels; each second task has a calibration."""
    options = LABELS[:labels]
    phis = tuple(learned(model, 10 * number + member) for member in range(members))
    generator = torch.Generator().manual_seed(number)
    points = torch.rand(8, labels + 1, generator=generator, dtype=torch.float64) + 0.5
    calibration = TaskCalibration(points, options) if number % 2 else None
    examples = [Example(str(row), f"{row} {'word ' * (number + 3 * row)}", options, None) for row in range(questions)]
    posterior = TaskPosterior(model.scorer, phis, f"task {number}", is_posterior, {}, calibration=calibration)
    return Request(posterior, examples)


def mixed(model: AbmllModel) -> list[Request]:
    """One text or several, two to five options, one to five members, points and posteriors."""
    return [
        asked(model, 0),
        asked(model, 1, members=2, questions=3, labels=3),
        asked(model, 2, labels=5, questions=2, is_posterior=False),
        asked(model, 3, members=5, labels=4),
        asked(model, 4, questions=4),
        asked(model, 5, members=2, is_posterior=False),
    ]


def alone(requests: Sequence[Request], how: PredictConfig | None = None, seed: int = 0) -> list[Prediction]:
    return [one.posterior.predict(one.examples, how, seed=seed) for one in requests]


def assert_same(found: Sequence[Prediction], wanted: Sequence[Prediction]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.num_options, other.num_options)
        for name in ("probs", "entropy", "expected_entropy"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6)
        assert (one.truncated, one.left_out) == (other.truncated, other.left_out)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each pass has whose adapters are bound together: those of a posterior alone are not here."""
    seen: list[int] = []
    monkeypatch.setattr(prediction, "POSITIONS_CPU", 0)
    scores = OptionScorer.scores

    def spy(self: OptionScorer, batch: Any, phi: Adapter | None, how: Any = None) -> Any:
        if how is not None and how.updates is not None:
            seen.append(len(batch.answers))
        return scores(self, batch, phi, how)

    monkeypatch.setattr(OptionScorer, "scores", spy)
    return seen


SPACES: list[dict[str, Any]] = [
    {"space": "weight"},
    {"space": "weight", "sigma_rank": 2},
    {"space": "factor"},
    {"space": "factor-a"},
    {"space": "dropout"},
    {"space": "weight", "layers_to_transform": None, "target_modules": ["q_proj", "v_proj"]},
]


@pytest.mark.parametrize("adapter", SPACES, ids=lambda adapter: "-".join(map(str, adapter.values())))
@pytest.mark.parametrize("packed", [True, False])
def test_each_request_is_answered_as_by_its_own_posterior(
    adapter: dict[str, Any], packed: bool, make_model: MakeModel, passes: list[int]
) -> None:
    model = make_model(**adapter)
    if not packed:
        unpack(model)
    requests = mixed(model)
    wanted = alone(requests, seed=4)
    assert not passes
    assert_same(predict_together(requests, seed=4), wanted)
    # Four samples; two members with two each; one pass at the mean; five members with one each; two at their means.
    assert passes == [12, 10, 9, 9, 1]
    assert (wanted[0].probs - predict_together(requests, seed=5)[0].probs).abs().max() > 1e-3


@pytest.mark.parametrize("how", [PredictConfig(num_samples=0), PredictConfig(use_calibration=False, num_samples=2)])
def test_settings_are_those_of_predict(how: PredictConfig, make_model: MakeModel, passes: list[int]) -> None:
    requests = mixed(make_model())
    assert_same(predict_together(requests, how), alone(requests, how))
    assert passes[0] == 12


def test_the_order_of_the_requests_changes_nothing(make_model: MakeModel) -> None:
    requests = mixed(make_model())
    assert_same(predict_together(requests[::-1])[::-1], predict_together(requests))


def test_more_questions_than_a_batch_holds(make_model: MakeModel, passes: list[int]) -> None:
    model = make_model()
    requests = [asked(model, number, questions=25) for number in range(3)]
    assert_same(predict_together(requests), alone(requests))
    assert max(passes) <= 32
    assert sum(passes) == 4 * 75


LINEARIZED, LOCAL = PredictConfig(predictive="linearized"), PredictConfig(prediction_noise="local")
EXACT = PredictConfig(prediction_noise_rank=0)


@pytest.mark.parametrize("how", [LINEARIZED, LOCAL, EXACT])
def test_what_depends_on_the_batch_is_answered_one_by_one(
    how: PredictConfig, make_model: MakeModel, passes: list[int]
) -> None:
    requests = mixed(make_model())
    assert_same(predict_together(requests, how), alone(requests, how))
    assert all(count <= 3 for count in passes)  # the two that have no standard deviations


def test_output_space_is_answered_one_by_one(make_model: MakeModel, passes: list[int]) -> None:
    model = make_model(space="output")
    requests = [asked(model, number, questions=2) for number in range(3)]
    assert_same(predict_together(requests), alone(requests))
    assert not passes


def test_heads_and_demonstrations_are_answered_among_the_others(make_model: MakeModel, passes: list[int]) -> None:
    model = make_model()
    shown = asked(model, 6)
    demonstrations = (Example("d", "word", ("no", "yes"), 1),)
    shown = replace(shown, posterior=replace(shown.posterior, demonstrations=demonstrations))
    head = model.adapt([("word", "no"), ("other", "yes"), ("more", "no")], task_name="head", how="head")
    requests = [asked(model, 0), Request(head, asked(model, 1).examples), shown, asked(model, 2)]
    assert_same(predict_together(requests), alone(requests))
    assert passes == [2, 2, 2, 2]


def test_lower_blocks_read_each_example_once(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    lower, read = model.scorer.lower_blocks, list[int]()
    output = lower.output

    def spy(batch: Any) -> Tensor:
        read.append(len(batch.answers))
        return output(batch)

    monkeypatch.setattr(lower, "output", spy)
    predict_together(mixed(model))
    assert sum(read) == 12


def test_one_request_is_its_own_prediction(make_model: MakeModel) -> None:
    request = asked(make_model(), 3, members=2)
    [found], [wanted] = predict_together([request]), alone([request])
    assert torch.equal(found.probs, wanted.probs)
    assert predict_together([]) == []


def test_posteriors_of_two_models_are_refused(make_model: MakeModel) -> None:
    requests = [asked(make_model(), 0), asked(make_model(), 1)]
    with pytest.raises(ConfigError, match=r"^these posteriors have models of their own; load them with one scorer"):
        predict_together(requests)


def test_a_request_without_examples_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(DataError, match=r"^task 'task 1': no examples to predict$"):
        predict_together([asked(model, 0), asked(model, 1, questions=0)])


@pytest.mark.real_model
def test_at_full_size_they_differ_by_rounding_alone() -> None:
    """As far as a posterior's own answers do that are read in other batches: some 1e-6."""
    model = AbmllModel.from_base(layers_to_transform="top-third", dtype="fp32", device="cpu")
    for tensor in model.theta.mean_tensors():
        tensor.add_(0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    scaled = [model.theta.clone() for _ in range(3)]
    for number, phi in enumerate(scaled):
        for tensor in phi.mean_tensors():
            tensor.mul_(0.5 + number)
    texts = "Charged twice", "The app closes when I open the settings", "No sound"
    requests = [
        Request(TaskPosterior(model.scorer, (phi,), "tickets", True, {}), [Example("0", text, LABELS[:2], None)])
        for phi, text in zip(scaled, texts, strict=True)
    ]
    together, each = predict_together(requests), alone(requests)
    for one, other in zip(together, each, strict=True):
        torch.testing.assert_close(one.probs, other.probs, rtol=0, atol=5e-6)
    assert not torch.allclose(each[0].probs, each[2].probs, atol=1e-3)
