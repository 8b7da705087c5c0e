"""Evaluations while training: right, harmless to what is learned, the same after a resume, and heeded at the end."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.checkpoint import checkpoints
from abmll.common.config import EvaluateConfig, ValidationConfig
from abmll.common.errors import CheckpointError, ConfigError, DataError
from abmll.experiments.few_shot import evaluate_tasks
from abmll.tasks import Example, Task
from abmll.training.callbacks import Callback
from abmll.training.early_stopping import best_row, is_over, without_improvement
from tests.training.stopping import interrupt

MakeTrainer = Callable[..., MetaTrainer]
FILES = ("metrics.jsonl", "validation.jsonl", "best.json", "calibration.json")


def toy(name: str) -> Task:
    examples = [Example(str(n), f"{name} {n} {'ab'[n % 2]}", ("yes", "no"), n % 2) for n in range(40)]
    return Task(name, tuple(examples))


@pytest.fixture
def held_out() -> list[Task]:
    return [toy("validation one"), toy("validation two")]


@pytest.fixture
def make(tiny_model: AbmllModel, toy_tasks: list[Task], held_out: list[Task], tmp_path: Path) -> MakeTrainer:
    """A trainer with an evaluation every other episode; keywords are settings."""

    def make(
        name: str = "run", tasks: list[Task] = held_out, callbacks: tuple[Callback, ...] = (), **settings: Any
    ) -> MetaTrainer:
        short: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "inner_steps": 2, "per_device_train_batch_size": 2}
        short |= {"lr_scheduler_type": "constant", "calibration_tasks": 2, "calibration_examples": 4}
        if tasks:
            short |= {"eval_steps": 2, "eval_examples": 4, "eval_test_examples": 5, "eval_adapt_steps": 2}
        config = TrainConfig(output_dir=str(tmp_path / name), **short | settings)
        return MetaTrainer(tiny_model, toy_tasks, config, callbacks=callbacks, eval_tasks=tasks)

    return make


def scripted(trainer: MetaTrainer, *values: float) -> MetaTrainer:
    """The same whose evaluations find these NLLs, one after the other; the accuracy is one minus the NLL."""
    validation, evaluate, rest = trainer.validation, trainer.validation.evaluate, iter(values)

    def found(*args: Any, **how: Any) -> dict[str, Any]:
        row = evaluate(*args, **how)
        nll = next(rest)
        row.update(nll=nll, accuracy=1 - nll)
        return row

    vars(validation)["evaluate"] = found
    return trainer


def theta(folder: Path, episode: int) -> bytes:
    return (folder / f"checkpoint-{episode}" / "theta.safetensors").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    found = {name: (folder / name).read_bytes() for name in FILES[:3] if (folder / name).exists()}
    return found | {path.name: theta(folder, episode) for episode, path in checkpoints(folder).items()}


# -- the numbers -----------------------------------------------------------------------------------------------------


def test_an_evaluation_has_the_numbers_of_abmll_evaluate(
    make: MakeTrainer, tiny_model: AbmllModel, held_out: list[Task]
) -> None:
    trainer = make(eval_steps=4, seed=3)
    result = trainer.train()
    rows = trainer.folder.rows("validation.jsonl")
    assert [row["episode"] for row in rows] == [4, 6]  # the end as well
    assert result.evaluation == rows[-1]
    how = EvaluateConfig(steps=2, adapt_examples=4, test_examples=5, use_calibration=False)
    expected = evaluate_tasks(tiny_model, held_out, how, seed=3, cache=trainer.cache).pooled
    assert rows[-1] == pytest.approx(
        {"episode": 6, "num_tasks": 2, "num_examples": 10} | {name: expected[name] for name in ("nll", "accuracy")},
        rel=1e-12,
    )


@pytest.mark.parametrize("method", ["abmll", "regular-lora", "reptile", "abmll-icl"])
def test_evaluating_changes_nothing_that_is_learned(make: MakeTrainer, tmp_path: Path, method: str) -> None:
    random = torch.get_rng_state()
    make("with", method=method).train()
    assert torch.equal(random, torch.get_rng_state())
    make("without", [], method=method).train()
    for name in ("metrics.jsonl", "checkpoint-6/theta.safetensors", "checkpoint-6/optimizer_phi.safetensors"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert not (tmp_path / "without" / "validation.jsonl").exists()


def test_callbacks_hear_of_every_evaluation(make: MakeTrainer) -> None:
    heard: list[Mapping[str, Any]] = []

    class Listener(Callback):
        def on_evaluate(self, episode: int, metrics: Mapping[str, Any]) -> None:
            assert metrics["episode"] == episode
            heard.append(metrics)

    trainer = make(callbacks=(Listener(),))
    trainer.train()
    assert heard == trainer.folder.rows("validation.jsonl")
    assert len(heard) == 3


# -- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_a_resumed_run_has_the_same_evaluations(make: MakeTrainer, tmp_path: Path, metric: str) -> None:
    settings = {"load_best_model_at_end": True, "save_total_limit": 1, "metric_for_best_model": metric}
    make("whole", **settings).train()
    interrupt(make("stopped", **settings), episode=6)
    assert len(make("stopped", **settings).folder.rows("validation.jsonl")) == 2
    make("stopped", **settings).train(resume=True)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_other_validation_tasks_or_examples_are_refused(
    make: MakeTrainer, held_out: list[Task], tmp_path: Path
) -> None:
    make(max_steps=2).train()
    before = files(tmp_path / "run")
    for tasks, settings in ((held_out[:1], {}), (held_out, {"eval_examples": 3}), ([], {})):
        with pytest.raises(
            CheckpointError, match="has been evaluated in another way so far; give the same --eval-task"
        ):
            make("run", tasks, **settings).train(resume=True)
    assert files(tmp_path / "run") == before
    make(eval_steps=3, early_stopping_patience=9).train(resume=True)  # how often and how long may change
    assert [row["episode"] for row in make().folder.rows("validation.jsonl")] == [2, 3, 6]


def test_a_run_may_begin_to_be_evaluated_later(make: MakeTrainer) -> None:
    make("run", [], max_steps=3).train()
    make("run").train(resume=True)
    assert [row["episode"] for row in make().folder.rows("validation.jsonl")] == [4, 6]


# -- the best one ----------------------------------------------------------------------------------------------------


def test_the_best_theta_is_the_runs(make: MakeTrainer, tiny_model: AbmllModel, tmp_path: Path) -> None:
    trainer = scripted(make(load_best_model_at_end=True, save_total_limit=1), 0.4, 0.5, 0.6)
    result = trainer.train()
    assert list(checkpoints(tmp_path / "run")) == [2, 6]  # the best in spite of the limit
    assert result.evaluation is not None
    assert (result.evaluation["episode"], result.episodes, result.stopped_early) == (2, 6, False)
    read = AbmllModel.from_pretrained(tmp_path / "run", model=tiny_model.scorer.base.twin())
    pairs = zip(read.theta.named_tensors(), tiny_model.theta.named_tensors(), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)
    assert theta(tmp_path / "run", 2) != theta(tmp_path / "run", 6)
    document = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert document["episode"] == 2
    assert read.calibration_prior is not None
    timing = trainer.folder.rows("timing.jsonl")
    assert trainer.folder.cost()["tokens"] == sum(row["tokens"] for row in timing) + document["cost"]["tokens"]
    assert "Theta is that of after episode 2, the best evaluation." in (tmp_path / "run" / "README.md").read_text()


def test_greater_accuracy_is_better(make: MakeTrainer, tmp_path: Path) -> None:
    trainer = scripted(make(load_best_model_at_end=True, metric_for_best_model="accuracy"), 0.5, 0.4, 0.6)
    assert (trainer.train().evaluation or {})["episode"] == 4
    assert json.loads((tmp_path / "run" / "best.json").read_text())["episode"] == 4


def test_a_best_end_needs_no_choice(make: MakeTrainer, tmp_path: Path) -> None:
    scripted(make(load_best_model_at_end=True), 0.5, 0.4, 0.3).train()
    assert not (tmp_path / "run" / "best.json").exists()


def test_a_run_that_goes_on_forgets_what_it_chose(make: MakeTrainer, tmp_path: Path) -> None:
    scripted(make(load_best_model_at_end=True), 0.4, 0.5, 0.6).train()
    scripted(make(load_best_model_at_end=True, max_steps=8), 0.1).train(resume=True)
    assert not (tmp_path / "run" / "best.json").exists()  # the end is the best now


def test_a_chosen_checkpoint_that_is_gone_is_named(make: MakeTrainer, tiny_model: AbmllModel, tmp_path: Path) -> None:
    scripted(make(load_best_model_at_end=True, save_total_limit=1), 0.4, 0.5, 0.6).train()
    checkpoints(tmp_path / "run")[2].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"best\.json: names checkpoint-2, which is not there; delete best\.json"):
        AbmllModel.from_pretrained(tmp_path / "run", model=tiny_model.scorer.base)


# -- stopping early --------------------------------------------------------------------------------------------------


def test_a_run_stops_when_it_gets_no_better_and_goes_on_with_more_patience(make: MakeTrainer, tmp_path: Path) -> None:
    result = scripted(make(max_steps=12, early_stopping_patience=2), 0.4, 0.5, 0.6).train()
    assert (result.episodes, result.stopped_early) == (6, True)
    assert max(checkpoints(tmp_path / "run")) == 6
    card = " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert "Stopped early, after episode 6 of 12: 2 evaluations in a row had no better nll." in card
    again = make(max_steps=12, early_stopping_patience=2).train(resume=True)
    assert (again.episodes, again.gradient_steps, again.stopped_early) == (6, 0, True)
    more = scripted(make(max_steps=12, early_stopping_patience=3), 0.3, 0.2, 0.1).train(resume=True)
    assert (more.episodes, more.stopped_early) == (12, False)
    make("whole", [], max_steps=12).train()
    assert theta(tmp_path / "run", 12) == theta(tmp_path / "whole", 12)


def test_a_stopped_run_has_its_best_theta(make: MakeTrainer, tmp_path: Path) -> None:
    settings = {"max_steps": 12, "early_stopping_patience": 2, "load_best_model_at_end": True, "save_total_limit": 1}
    result = scripted(make(**settings), 0.4, 0.5, 0.6).train()
    assert result.evaluation is not None
    assert (result.episodes, result.evaluation["episode"]) == (6, 2)
    assert list(checkpoints(tmp_path / "run")) == [2, 6]


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ([], 0.0, 0),
        ([0.5], 0.0, 0),
        ([0.5, 0.5], 0.0, 1),  # equal is no improvement
        ([0.5, 0.4, 0.6, 0.45], 0.0, 2),
        ([0.5, 0.45, 0.40, 0.35], 0.1, 3),  # each against the best so far, as transformers does
        ([0.5, 0.45, 0.30], 0.1, 0),
    ],
)
def test_the_patience_counts_as_in_transformers(values: list[float], threshold: float, expected: int) -> None:
    rows = [{"episode": n, "nll": value, "accuracy": 1 - value} for n, value in enumerate(values)]
    assert without_improvement(rows, "nll", threshold) == expected == transformers_count(values, threshold)
    assert is_over(rows, ValidationConfig(early_stopping_patience=2, early_stopping_threshold=threshold)) == (
        expected >= 2
    )
    assert not is_over(rows, ValidationConfig())


def transformers_count(values: list[float], threshold: float) -> int:
    """What transformers' own callback has counted, fed as its Trainer feeds it."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

    callback = EarlyStoppingCallback(10**6, threshold)
    arguments = TrainingArguments(metric_for_best_model="eval_nll", greater_is_better=False, report_to="none")
    state, control = TrainerState(), TrainerControl()
    for value in values:
        callback.on_evaluate(arguments, state, control, {"eval_nll": value})
        if state.best_metric is None or value < state.best_metric:
            state.best_metric = value
    return callback.early_stopping_patience_counter


def test_the_earliest_of_equals_is_the_best() -> None:
    rows = [{"episode": n, "nll": nll, "accuracy": accuracy} for n, nll, accuracy in ((1, 0.5, 0.7), (2, 0.5, 0.7))]
    assert best_row(rows, "nll") is rows[0]
    assert best_row(rows, "accuracy") is rows[0]
    assert best_row([], "nll") is None


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"eval_steps": 2}, {"load_best_model_at_end": True}, {"early_stopping_patience": 1}]
)
def test_settings_without_validation_tasks(make: MakeTrainer, settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(
        ConfigError, match=rf"^{name}: no validation tasks to evaluate on; name them with --eval-tasks$"
    ):
        make("run", [], **settings)


def test_an_outer_step_is_not_evaluated_in_its_middle(make: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match=r"^eval_steps is 2, but an outer step takes meta_batch = 3"):
        make(method="maml", meta_batch=3)


def test_tasks_that_cannot_be_evaluated_on(make: MakeTrainer, held_out: list[Task]) -> None:
    with pytest.raises(DataError, match="validation tasks of the same name"):
        make("run", [held_out[0], held_out[0]])
    bare = Task("bare", (Example("0", "a", ("yes", "no"), None), Example("1", "b", ("yes", "no"), None)))
    with pytest.raises(DataError, match=r"^bare: evaluation needs labelled training examples$"):
        make("run", [bare])
