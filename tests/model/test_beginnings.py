"""Requests to many tasks, of which the beginnings are kept, against what each posterior says by itself."""

import gc
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import PredictConfig
from abmll.language.adapter import Adapter
from abmll.language.scorer import OptionScorer
from abmll.model.beginnings import Beginning, Beginnings
from abmll.model.together import predict_together
from tests.model.conftest import MakeModel, learned, unpack
from tests.model.test_together import SPACES, alone, asked, assert_same, mixed

LENGTH = len("task 0: ")  # the tokenizer's tokens are bytes


@pytest.fixture
def positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each pass reads whose adapters are bound together."""
    seen: list[int] = []
    scores = OptionScorer.scores

    def spy(self: OptionScorer, batch: Any, phi: Adapter | None, how: Any = None) -> Any:
        if how is not None and how.updates is not None:
            seen.append(batch.input_ids.numel())
        return scores(self, batch, phi, how)

    monkeypatch.setattr(OptionScorer, "scores", spy)
    return seen


@pytest.mark.parametrize("adapter", SPACES, ids=lambda adapter: "-".join(map(str, adapter.values())))
@pytest.mark.parametrize("how", [None, PredictConfig(num_samples=0)])
def test_answers_are_those_of_each_posterior_alone(
    adapter: dict[str, Any], how: PredictConfig | None, make_model: MakeModel
) -> None:
    """When the beginnings are read, when they are there, and in other company."""
    requests, beginnings = mixed(make_model(**adapter)), Beginnings()
    wanted = alone(requests, how, seed=4)
    first, second = (predict_together(requests, how, 4, beginnings) for _ in range(2))
    assert_same(first, wanted)
    assert all(torch.equal(one.probs, other.probs) for one, other in zip(first, second, strict=True))
    assert_same(predict_together(requests[2:5], how, 4, beginnings), wanted[2:5])
    assert len(beginnings.kept) == sum(len(one.posterior.members) for one in requests)


def test_beginnings_are_read_once(make_model: MakeModel, positions: list[int]) -> None:
    model = make_model()
    requests, beginnings = [asked(model, number, questions=2) for number in range(3)], Beginnings()
    predict_together(requests)
    [whole] = set(positions)
    positions.clear()
    predict_together(requests, beginnings=beginnings)
    assert positions == [3 * LENGTH] * 4 + [whole - 6 * LENGTH] * 4
    positions.clear()
    predict_together([*requests[1:], asked(model, 4, questions=1)], beginnings=beginnings)
    assert positions[:4] == [LENGTH] * 4
    assert len(positions) == 8


def test_another_sample_is_read_anew(make_model: MakeModel) -> None:
    requests, beginnings = mixed(make_model()), Beginnings()
    for seed, how in ((0, None), (1, None), (1, PredictConfig(num_samples=3)), (0, PredictConfig(num_samples=0))):
        assert_same(predict_together(requests, how, seed, beginnings), alone(requests, how, seed))


def test_padded_rows_are_read_whole(make_model: MakeModel, positions: list[int]) -> None:
    model = make_model()
    unpack(model)
    requests, beginnings = [asked(model, number) for number in range(2)], Beginnings()
    assert_same(predict_together(requests, beginnings=beginnings), alone(requests))
    assert not beginnings.kept


def beginning(size: int) -> Beginning:
    values = torch.zeros(1, 1, size, 2)
    return Beginning.of((0,), (1, 2, 3), ({torch.nn.Identity(): (values, values)},))


@pytest.fixture
def phis(make_model: MakeModel) -> list[Adapter]:
    model: AbmllModel = make_model()
    return [learned(model, seed) for seed in range(3)]


def test_the_longest_unused_leaves_first(phis: list[Adapter]) -> None:
    beginnings = Beginnings(max_bytes=2 * beginning(5).nbytes)
    assert beginning(5).nbytes == 2 * 5 * 2 * 4
    beginnings.keep(phis[0], beginning(5))
    beginnings.keep(phis[1], beginning(5))
    assert beginnings.find(phis[0], (0,), (1, 2)) is not None
    beginnings.keep(phis[2], beginning(5))
    assert [beginnings.find(phi, (0,), (1, 2)) is not None for phi in phis] == [True, False, True]
    assert beginnings.find(phis[0], (0,), (1, 3)) is None
    assert beginnings.find(phis[2], (1,), (1, 2)) is None


def test_what_belongs_to_an_adapter_goes_with_it(phis: list[Adapter]) -> None:
    beginnings = Beginnings()
    beginnings.keep(phis[0], beginning(1))
    beginnings.keep(phis[1], beginning(1))
    del phis[0]
    gc.collect()
    assert list(beginnings.kept) == [phis[0]]
