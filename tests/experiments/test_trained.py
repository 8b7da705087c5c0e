"""Training runs found again, and what they cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel
from abmll.common.config import TrainConfig
from abmll.experiments.trained import cost_of_run, recall, train_once
from abmll.language.meter import metered
from abmll.methods import State
from abmll.tasks import Task
from abmll.training.outer_step import OuterStep
from abmll.training.trainer import MetaTrainer


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        method="structured-lora", max_steps=2, save_steps=1, inner_steps=2, per_device_train_batch_size=4,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every training that takes place: whether it goes on with an interrupted one."""
    train, begun = MetaTrainer.train, list[bool]()

    def watched(self: MetaTrainer, *, resume: bool, **how: Any) -> Any:
        begun.append(resume)
        return train(self, resume=resume, **how)

    monkeypatch.setattr(MetaTrainer, "train", watched)
    return begun


def test_a_finished_run_is_read_and_one_of_other_settings_is_replaced(
    tiny_model: AbmllModel, toy_tasks: list[Task], config: TrainConfig, trainings: list[bool]
) -> None:
    train_once(tiny_model, toy_tasks, config, None, quiet=True)
    cost = cost_of_run(Path(config.output_dir))
    assert (cost["episodes"], cost["gradient_steps"], cost["forward_passes"]) == (2, 4, 4)
    assert cost["tokens"]
    theta = dict(tiny_model.theta.named_tensors())
    fresh = tiny_model.scorer.new_adapter(5)
    tiny_model.learned(fresh, replace(config, learning_rate=1.0), 1)
    train_once(tiny_model, toy_tasks, config, None, quiet=True)
    assert trainings == [False]
    assert cost_of_run(Path(config.output_dir)) == cost
    assert all(torch.equal(theta[name], tensor) for name, tensor in tiny_model.theta.named_tensors())
    assert (tiny_model.learning.learning_rate, tiny_model.num_tasks) == (config.learning_rate, 3)
    train_once(tiny_model, toy_tasks, replace(config, learning_rate=0.5), None, quiet=True)
    assert not all(torch.equal(theta[name], tensor) for name, tensor in tiny_model.theta.named_tensors())
    assert trainings == [False, False]


def test_an_interrupted_run_goes_on(
    tiny_model: AbmllModel,
    toy_tasks: list[Task],
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    trainings: list[bool],
) -> None:
    take = OuterStep.take

    def stopped(self: OuterStep, state: State, first: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        if first == 1:
            raise KeyboardInterrupt
        return take(self, state, first)

    with monkeypatch.context() as patch:
        patch.setattr(OuterStep, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_once(tiny_model, toy_tasks, config, None, quiet=True)
    train_once(tiny_model, toy_tasks, config, None, quiet=True)
    assert trainings == [False, True]
    cost = cost_of_run(Path(config.output_dir))
    assert (cost["episodes"], cost["gradient_steps"]) == (2, 4)


def test_passes_and_tokens_are_counted(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    scorer = tiny_model.scorer
    batch = scorer.batch(scorer.encode(toy_tasks[0].examples[:2], "toy"))
    with metered(scorer) as cost:
        scorer.scores(batch, tiny_model.theta)
        with torch.no_grad():
            scorer.scores(batch, tiny_model.theta)
            scorer.scores(batch, None)
    assert (cost.forward_passes, cost.gradient_passes) == (3, 1)
    assert cost.tokens == 3 * batch.input_ids.numel()
    assert cost.seconds > 0
    scorer.scores(batch, None)
    assert cost.forward_passes == 3  # what comes after is not counted


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is known on Linux alone")
def test_the_peak_is_of_the_block(tiny_model: AbmllModel) -> None:
    with metered(tiny_model.scorer) as small:
        pass
    with metered(tiny_model.scorer) as large:
        torch.ones(30_000_000)
    with metered(tiny_model.scorer) as after:
        pass
    if small.peak_memory_mb is None or large.peak_memory_mb is None or after.peak_memory_mb is None:
        pytest.skip("this system does not say how much memory was held at most")
    assert large.peak_memory_mb - small.peak_memory_mb > 100
    assert large.peak_memory_mb - after.peak_memory_mb > 100


def test_the_theta_after_an_earlier_episode_is_that_of_a_shorter_run(
    tiny_model: AbmllModel, toy_tasks: list[Task], config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, max_steps=3, save_total_limit=3)
    train_once(tiny_model, toy_tasks, config, None, quiet=True, episodes=(1, 3))
    final = tiny_model.theta
    assert recall(tiny_model, config, len(toy_tasks), 1)
    early = tiny_model.theta
    assert not torch.equal(early.mean_tensors()[0], final.mean_tensors()[0])
    short = replace(config, max_steps=1, output_dir=str(tmp_path / "short"))
    train_once(tiny_model, toy_tasks, short, None, quiet=True)
    assert all(map(torch.equal, early.mean_tensors(), tiny_model.theta.mean_tensors()))
    whole = cost_of_run(Path(config.output_dir))
    assert cost_of_run(Path(config.output_dir), 1)["episodes"] == 1
    assert cost_of_run(Path(config.output_dir), 3) == whole
    assert not recall(tiny_model, replace(config, learning_rate=0.5), len(toy_tasks), 1)
    assert not recall(tiny_model, config, len(toy_tasks), 7)


def test_a_run_that_has_deleted_a_checkpoint_is_replaced_where_that_is_wanted(
    tiny_model: AbmllModel, toy_tasks: list[Task], config: TrainConfig, trainings: list[bool]
) -> None:
    config = replace(config, max_steps=3, save_total_limit=1)
    train_once(tiny_model, toy_tasks, config, None, quiet=True)
    assert not recall(tiny_model, config, len(toy_tasks), 1)
    config = replace(config, save_total_limit=3)
    train_once(tiny_model, toy_tasks, config, None, quiet=True, episodes=(1, 3))
    assert trainings == [False, False]
    assert recall(tiny_model, config, len(toy_tasks), 1)
