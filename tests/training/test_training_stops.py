"""MetaTrainer stops honestly: what it refuses, what it notices, and what Ctrl-C leaves."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.checkpoint import STATE, checkpoints, load_bundle
from abmll.common.errors import ConfigError, DataError, TrainingError
from abmll.methods import Loss, State

MakeTrainer = Callable[..., MetaTrainer]


def test_an_existing_run_is_neither_continued_nor_replaced_unasked(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.train()
    before = trainer.folder.rows()
    with pytest.raises(ConfigError, match="holds a run already; continue it with --resume or replace it with"):
        make_trainer(seed=5).train()
    assert trainer.folder.rows() == before
    make_trainer(seed=5).train(overwrite=True)
    assert trainer.folder.rows() != before


@pytest.mark.parametrize(("method", "zero"), [("abmll", "outer_"), ("structured-lora", "")])
def test_learning_rates_of_zero_are_noticed(make_trainer: MakeTrainer, method: str, zero: str) -> None:
    rates = {f"{zero}learning_rate": 0.0, f"{zero}scale_learning_rate": 0.0}
    trainer = make_trainer(method=method, **rates)
    unmoved = f"the mean of {'theta' if zero else 'phi'} did not move in the first episode; are the learning"
    with pytest.raises(TrainingError, match=rf"^episode 1, task 'toy\d': {unmoved}"):
        trainer.train()
    assert list(checkpoints(trainer.folder.path)) == []


def test_a_phi_that_stays_is_noticed_though_theta_moves(make_trainer: MakeTrainer) -> None:
    with pytest.raises(TrainingError, match="the mean of phi did not move"):
        make_trainer(learning_rate=0.0).train()


def test_a_sigma_may_be_held_fixed(make_trainer: MakeTrainer) -> None:
    make_trainer(scale_learning_rate=0.0, outer_scale_learning_rate=0.0).train()


def test_no_weight_on_any_term_is_noticed(make_trainer: MakeTrainer) -> None:
    with pytest.raises(TrainingError, match="did not move"):
        make_trainer(beta=0.0, gamma=0.0).train()


@pytest.mark.parametrize("method", ["abmll", "structured-lora", "regular-lora"])
def test_a_loss_that_is_no_number_stops_the_run(make_trainer: MakeTrainer, method: str) -> None:
    make_trainer(method=method, max_steps=2, save_steps=1).train()
    trainer = make_trainer(method=method, max_steps=4, save_steps=1)
    whole = {path: path.read_bytes() for path in (trainer.folder.path / "checkpoint-2").iterdir()}
    next(trainer.model.scorer.base.model.parameters()).data.fill_(torch.nan)
    name = trainer.episodes.name(2)
    with pytest.raises(TrainingError) as caught:
        trainer.train(resume=True)
    wanted = f"episode 3, task '{name}': step 1: the loss term 'nll' is nan; lower the learning rates"
    assert str(caught.value) == wanted
    assert {path: path.read_bytes() for path in (trainer.folder.path / "checkpoint-2").iterdir()} == whole
    load_bundle(trainer.folder.path / "checkpoint-2", STATE)
    assert len(trainer.folder.rows()) == 2


def test_a_learning_rate_that_blows_up_names_term_episode_and_task(make_trainer: MakeTrainer) -> None:
    words = r"^episode 1, task 'toy\d': step 3: the loss term '(nll|kl)' is (nan|inf); lower the learning rates$"
    with pytest.raises(TrainingError, match=words):
        make_trainer(learning_rate=1e15, inner_steps=3).train()


def test_a_theta_that_is_not_finite_is_never_saved(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=1)
    take: Any = trainer.rule.take

    def taken(state: State, *args: Any) -> Mapping[str, Tensor]:
        norms = take(state, *args)
        state.theta.mean_tensors()[0].data[0, 0, 0] = torch.inf
        return norms

    vars(trainer.rule).update(take=taken)
    with pytest.raises(
        TrainingError, match=r"episode 1, task 'toy\d': theta's \w+\.mean_A is not finite after the step"
    ):
        trainer.train()
    assert list(checkpoints(trainer.folder.path)) == []


def interrupt_at(trainer: MetaTrainer, episode: int) -> None:
    """Ctrl-C in the middle of an episode."""
    step, calls = trainer.rule.inner_step, iter(range(10**6))

    def inner_step(*args: Any) -> Loss:
        if next(calls) == 2 * episode + 1:
            raise KeyboardInterrupt
        return step(*args)

    vars(trainer.rule).update(inner_step=inner_step)


def test_ctrl_c_says_where_to_resume(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=6, save_steps=2)
    interrupt_at(trainer, episode=5)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert str(caught.value) == f"{tmp_path / 'run'}: run the same command with --resume to go on from episode 4"
    assert len(trainer.folder.rows()) == 5
    assert make_trainer(max_steps=6, save_steps=2).train(resume=True).gradient_steps == 2 * 3
    assert len(trainer.folder.rows()) == 6


def test_ctrl_c_before_the_first_checkpoint_says_so(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    interrupt_at(trainer, episode=0)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    wanted = f"{tmp_path / 'run'}: run the same command with --overwrite: no checkpoint was due yet"
    assert str(caught.value) == wanted


def test_tasks_and_settings_are_checked_before_anything_is_written(
    make_trainer: MakeTrainer, tiny_model: AbmllModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"method: unknown 'abmmll'; Did you mean 'abmll'\?"):
        make_trainer(method="abmmll")
    with pytest.raises(ConfigError, match="method: 'laplace' is not trained itself; train regular-lora, which it cont"):
        make_trainer(method="laplace")
    for name in ("max_steps", "save_steps"):
        with pytest.raises(
            ConfigError, match=f"{name} is 7, but an outer step takes meta_batch = 3 .*; use {name} = 9"
        ):
            make_trainer(**{"method": "maml", "meta_batch": 3, "max_steps": 6, "save_steps": 6, name: 7})
    with pytest.raises(DataError, match="no training tasks"):
        MetaTrainer(tiny_model, [], TrainConfig(output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_quiet_is_quiet(make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(max_steps=1)
    capsys.readouterr()
    trainer.train()
    assert capsys.readouterr() == ("", "")
    assert json.loads((trainer.folder.path / "metrics.jsonl").read_text())["episode"] == 1
