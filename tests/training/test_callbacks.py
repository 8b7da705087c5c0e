"""Callbacks see every episode, checkpoint and end of a training, and one that fails is not passed over."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.tasks import Task
from abmll.training.callbacks import Callback

MakeTrainer = Callable[..., MetaTrainer]


class Diary(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.rows: list[Mapping[str, Any]] = []

    def on_start(self, settings: Mapping[str, Any]) -> None:
        self.seen.append(("start", settings["max_steps"]))

    def on_step(self, episode: int, metrics: Mapping[str, Any]) -> None:
        self.seen.append(("step", episode))
        self.rows.append(metrics)

    def on_save(self, episode: int, folder: Path) -> None:
        assert (folder / "state.json").is_file()
        self.seen.append(("save", episode, folder.name))

    def on_end(self, result: Any) -> None:
        self.seen.append(("end", result and result.episodes))


@pytest.fixture
def make(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> MakeTrainer:
    def make(*callbacks: Callback, **settings: Any) -> MetaTrainer:
        short: dict[str, Any] = {"max_steps": 3, "save_steps": 2, "inner_steps": 2, "per_device_train_batch_size": 2}
        short["lr_scheduler_type"] = "constant"
        config = TrainConfig(output_dir=str(tmp_path / "run"), **short | settings)
        return MetaTrainer(tiny_model, toy_tasks, config, callbacks=callbacks)

    return make


def test_a_run_is_seen_and_goes_on_where_it_was(make: MakeTrainer) -> None:
    first, second = Diary(), Diary()
    trainer = make(first)
    trainer.train()
    begun = [("start", 3), ("step", 1), ("step", 2), ("save", 2, "checkpoint-2"), ("step", 3)]
    assert first.seen == [*begun, ("save", 3, "checkpoint-3"), ("end", 3)]
    assert first.rows == trainer.folder.rows()
    trainer = make(second, max_steps=5)
    trainer.train(resume=True)
    gone_on = [("start", 5), ("step", 4), ("save", 4, "checkpoint-4"), ("step", 5), ("save", 5, "checkpoint-5")]
    assert second.seen == [*gone_on, ("end", 5)]
    assert first.rows + second.rows == trainer.folder.rows()


def test_what_a_callback_raises_ends_the_training(make: MakeTrainer) -> None:
    class Full(Callback):
        def on_step(self, episode: int, metrics: Mapping[str, Any]) -> None:
            raise RuntimeError(f"full at {episode}")

    diary = Diary()
    with pytest.raises(RuntimeError, match=r"^full at 1$"):
        make(diary, Full()).train()
    assert diary.seen == [("start", 3), ("step", 1), ("end", None)]


def test_the_empty_callback_changes_nothing(make: MakeTrainer) -> None:
    assert make(Callback()).train().episodes == 3
