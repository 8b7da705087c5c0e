"""Gradient checkpointing as a setting: what is learned is the same to the bit, and a run may go on either way."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel, MetaTrainer
from abmll.language.recomputed import RecomputedBlock
from abmll.methods import REGISTRY
from abmll.tasks import Task

MakeTrainer = Callable[..., MetaTrainer]
TRAINED = [name for name, rule in REGISTRY.items() if rule.is_trained]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every block that is computed anew later."""
    found: list[int] = []
    forward = RecomputedBlock.forward

    def counted(self: RecomputedBlock, *args: Tensor, **kwargs: object) -> object:
        found.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(RecomputedBlock, "forward", counted)
    return found


def learned(trainer: MetaTrainer) -> list[Tensor]:
    trainer.train(overwrite=True)
    return [tensor.clone() for _, tensor in trainer.model.theta.named_tensors()]


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_learns_the_same(make_trainer: MakeTrainer, passes: list[int], method: str) -> None:
    plain = learned(make_trainer(method=method, calibration_tasks=0))
    assert not passes
    assert all(map(torch.equal, learned(make_trainer(method=method, gradient_checkpointing=True)), plain))
    assert passes


def test_a_run_goes_on_with_it(make_trainer: MakeTrainer, passes: list[int], tmp_path: Path) -> None:
    whole = learned(make_trainer(max_steps=4))
    make_trainer(max_steps=2).train(overwrite=True)
    assert not passes
    trainer = make_trainer(max_steps=4, gradient_checkpointing=True)
    trainer.train(resume=True)
    assert passes
    assert all(map(torch.equal, whole, [tensor for _, tensor in trainer.model.theta.named_tensors()]))


def test_adapting_learns_the_same(tiny_model: AbmllModel, toy_tasks: list[Task], passes: list[int]) -> None:
    plain = tiny_model.adapt(toy_tasks[0].train[:6], steps=3)
    assert not passes
    tiny_model.gradient_checkpointing_enable()
    found = tiny_model.adapt(toy_tasks[0].train[:6], steps=3)
    assert len(passes) == 3  # the upper one of the two blocks in every step
    pairs = zip(plain.phi.named_tensors(), found.phi.named_tensors(), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)
