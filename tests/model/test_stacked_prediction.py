"""Samples and members that read a batch side by side, against one after the other."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import PredictConfig
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.model import prediction
from abmll.model.prediction import Prediction, predict
from abmll.tasks import Example
from tests.model.conftest import MakeModel, learned, unpack

OPTIONS = ("no", "yes", "perhaps", "of course")


def questions(model: AbmllModel) -> list[Encoded]:
    """Of unlike length, with two to four options, behind words that all prompts begin with."""
    texts = [f"the same beginning {'word ' * (2 * row)}" for row in range(5)]
    return model.scorer.encode([Example(str(n), text, OPTIONS[: 2 + n % 3], None) for n, text in enumerate(texts)], "t")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each pass has."""
    seen: list[int] = []
    scores = OptionScorer.scores

    def spy(self: OptionScorer, batch: Any, phi: Adapter | None, how: Any = None) -> Any:
        seen.append(len(batch.answers))
        return scores(self, batch, phi, how)

    monkeypatch.setattr(OptionScorer, "scores", spy)
    return seen


def both(
    model: AbmllModel, members: Sequence[Adapter | None], how: PredictConfig, max_positions: int = 10**6
) -> tuple[Prediction, Prediction]:
    """Side by side, and one after the other."""
    asked = questions(model)
    found, wanted = (
        predict(model.scorer, members, asked, how, seed=3, max_positions=limit) for limit in (max_positions, 0)
    )
    for name in ("probs", "entropy", "expected_entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-6)
    return found, wanted


SPACES: list[dict[str, Any]] = [
    {"space": "weight"},
    {"space": "factor"},
    {"space": "factor-a"},
    {"space": "dropout"},
    {"space": "weight", "layers_to_transform": None, "target_modules": ["q_proj", "v_proj"]},
]


@pytest.mark.parametrize("adapter", SPACES, ids=lambda adapter: "-".join(map(str, adapter.values())))
@pytest.mark.parametrize("packed", [True, False])
def test_samples_of_members(adapter: dict[str, Any], packed: bool, make_model: MakeModel, passes: list[int]) -> None:
    model = make_model(**adapter)
    if not packed:
        unpack(model)
    members = [learned(model, seed) for seed in range(3)]
    passes.clear()
    found, _ = both(model, members, PredictConfig(num_samples=4))
    assert passes == [60] + 12 * [5]
    assert found.mutual_information.max() > 1e-4
    passes.clear()
    both(model, members, PredictConfig(num_samples=0))
    assert passes == [15] + 3 * [5]


@pytest.mark.parametrize(
    "how",
    [
        PredictConfig(num_samples=5, prediction_noise="local"),
        PredictConfig(num_samples=5, prediction_noise="local", prediction_noise_rank=3),
    ],
)
def test_noise_of_the_token_is_drawn_as_alone(how: PredictConfig, make_model: MakeModel) -> None:
    model = make_model()
    both(model, [learned(model, 0)], how)


@pytest.mark.parametrize(
    ("adapter", "how"),
    [
        ({}, PredictConfig(num_samples=3, prediction_noise_rank=0)),
        ({"sigma_rank": 2}, PredictConfig(num_samples=3)),
        ({"space": "output"}, PredictConfig(num_samples=3)),
        ({"space": "factor"}, PredictConfig(num_samples=3, prediction_noise="local")),
        ({}, PredictConfig(predictive="linearized")),
    ],
)
def test_others_are_answered_one_after_the_other(
    adapter: dict[str, Any], how: PredictConfig, make_model: MakeModel, passes: list[int]
) -> None:
    model = make_model(**adapter)
    members = [learned(model, 0), learned(model, 1)]
    both(model, members, how)
    assert max(passes) == 5


def test_as_many_at_once_as_there_is_room_for(
    make_model: MakeModel, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    members, how = [learned(model, 0), learned(model, 1)], PredictConfig(num_samples=4)
    size = model.scorer.batch(questions(model)).input_ids.numel()
    passes.clear()
    both(model, members, how, max_positions=3 * size + 1)
    assert passes == [15, 15, 10] + 8 * [5]
    rows = len(model.scorer.batch(questions(model)).rows)
    monkeypatch.setattr(prediction, "LOGITS", 4 * rows * model.scorer.base.model.config.vocab_size)
    passes.clear()
    both(model, members, how)
    assert passes == [20, 20] + 8 * [5]


def test_the_bare_model_among_members(make_model: MakeModel) -> None:
    model = make_model()
    both(model, [None, learned(model, 1)], PredictConfig(num_samples=3))
