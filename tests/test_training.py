"""MetaTrainer: it learns, it writes what it says, every setting counts, and it stops honestly."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.checkpoint import STATE, checkpoints, load_bundle
from abmll.config import LearningConfig, PromptConfig, RunConfig
from abmll.errors import ConfigError, DataError, TrainingError
from abmll.methods import Loss, State
from abmll.prediction import Prediction
from abmll.tasks import Example, Task

MakeTrainer = Callable[..., MetaTrainer]


@pytest.fixture
def make_trainer(tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path) -> MakeTrainer:
    """A trainer of a few short visits in ``run``; keywords are settings."""

    def make(**settings: Any) -> MetaTrainer:
        short: dict[str, Any] = {"max_steps": 3, "inner_steps": 2, "per_device_train_batch_size": 2}
        config = TrainConfig(**{"output_dir": str(tmp_path / "run"), **short, **settings})
        return MetaTrainer(tiny_model, toy_tasks, config)

    return make


def spy(trainer: MetaTrainer, **functions: Callable[..., Any]) -> None:
    """Put functions in the place of the rule's own."""
    vars(trainer.rule).update(functions)


# -- learning -----------------------------------------------------------------------------------------------------


def letters_task(name: str, seed: int, size: int = 60) -> Task:
    """Words of a and b are called yes, words of y and z no: learnable in a few visits, the same rule everywhere."""
    rng = random.Random(f"letters {seed}")
    examples = []
    for index in range(size):
        answer = rng.randrange(2)
        word = rng.choice(("ab", "yz")[answer]) * rng.randrange(6, 10)
        examples.append(Example(str(index), word, ("yes", "no"), answer))
    return Task(name, tuple(examples))


def nll(prediction: Prediction, questions: Sequence[Example]) -> float:
    chosen = [float(row[question.answer]) for row, question in zip(prediction.probs, questions, strict=True)]
    return -sum(math.log(one) for one in chosen) / len(chosen)


def accuracy(prediction: Prediction, questions: Sequence[Example]) -> float:
    right = zip(prediction.answers.tolist(), questions, strict=True)
    return sum(answer == question.answer for answer, question in right) / len(questions)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["abmll", "structured-lora"])
def test_training_learns_what_the_tasks_share(tiny_llama: Path, tmp_path: Path, method: str, seed: int) -> None:
    prompt = PromptConfig(instruction=False, list_options=False, answer="text")
    adapter: dict[str, Any] = {"r": 4, "target_modules": ["v_proj", "down_proj"], "init_log_sigma": -6.0}
    model = AbmllModel.from_base(str(tiny_llama), prompt=prompt, dtype="fp32", **adapter)
    config = TrainConfig(
        method=method,
        max_steps=24,
        inner_steps=3,
        learning_rate=2e-3,
        scale_learning_rate=5e-3,
        outer_learning_rate=3e-3,
        outer_scale_learning_rate=5e-3,
        output_dir=str(tmp_path / "run"),
        seed=seed,
    )
    trainer = MetaTrainer(model, [letters_task(f"train{number}", number) for number in range(3)], config)
    trainer.train()
    losses = [row["nll"] for row in trainer.folder.rows()]
    assert sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.05
    unseen = letters_task("unseen", 99)
    adapted = model.adapt(unseen.train, task_name="unseen", steps=10, batch_size=8, seed=seed)
    for samples in (0, 4):
        assert accuracy(adapted.predict(unseen.test, samples=samples), unseen.test) > 0.9  # chance is half
    # The same steps from a fresh adapter get less far.
    model.learned(model.theta, replace(model.learning, method="pretrained-adapted"), 1)
    fresh = model.adapt(unseen.train, task_name="unseen", steps=10, batch_size=8, seed=seed)
    from_theta, from_fresh = (one.predict(unseen.test, samples=0) for one in (adapted, fresh))
    assert nll(from_theta, unseen.test) < nll(from_fresh, unseen.test) - 0.05


# -- what is written ----------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_says(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=5, save_steps=2)
    result = trainer.train()
    run = tmp_path / "run"
    assert (result.folder, result.visits, result.gradient_steps) == (run, 5, 5 * 3)
    assert list(checkpoints(run)) == [4, 5]  # every second visit and the last, the two newest kept
    names = {path.name for path in run.rglob("*") if path.is_file()}
    tensors = {"theta.safetensors", "optimizer_phi.safetensors", "optimizer_theta.safetensors"}
    documents = {"config.yaml", "metrics.jsonl", "timing.jsonl", "README.md", "state.json", "manifest.json"}
    documents |= {"readout.json"}
    assert names == documents | tensors
    card = (run / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == trainer.settings()["model"]
    assert all(task.name in card for task in trainer.visits.tasks)
    assert f"{sum(row['nll'] for row in trainer.folder.rows()[-3:]) / 3:.3f} nats" in card
    timing = trainer.folder.rows("timing.jsonl")
    assert [row["visit"] for row in timing] == [1, 2, 3, 4, 5]
    assert sum(row["tokens"] for row in timing) == result.tokens
    kinds = {"visit", "seconds", "tokens", "steps", "forward_passes", "demonstrations_left_out"}
    assert all(row.keys() == kinds for row in timing)


def test_metrics_are_those_of_the_visits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    inner: list[Loss] = []
    outer: list[Loss] = []
    step, close = trainer.rule.inner_step, trainer.rule.outer_step

    def inner_step(*args: Any) -> Loss:
        inner.append(step(*args))
        return inner[-1]

    def outer_step(*args: Any) -> Loss | None:
        last = close(*args)
        assert last is not None
        outer.append(last)
        return last

    spy(trainer, inner_step=inner_step, outer_step=outer_step)
    trainer.train()
    rows = trainer.folder.rows()
    keys = "visit task nll accuracy loss kl prior grad_norm outer_grad_norm log_sigma"
    assert all(list(row) == keys.split() for row in rows)
    assert [row["visit"] for row in rows] == [1, 2, 3]
    assert sorted(row["task"] for row in rows) == ["toy0", "toy1", "toy2"]
    for visit, row in enumerate(rows):
        two = inner[2 * visit : 2 * visit + 2]
        assert row["nll"] == pytest.approx(sum(float(loss.nll) for loss in two) / 4)  # per example: 2 batches of 2
        assert row["accuracy"] == sum(int(loss.correct) for loss in two) / 4
        assert (row["grad_norm"], row["outer_grad_norm"]) == (float(two[-1].grad_norm), float(outer[visit].grad_norm))
        assert (row["kl"], row["prior"]) == (float(outer[visit].kl), float(outer[visit].prior))
        beta, gamma = trainer.config.beta, trainer.config.gamma
        assert row["loss"] == pytest.approx(beta * row["kl"] + gamma / 3 * row["prior"])
    assert rows[-1]["log_sigma"] == pytest.approx(trainer.model.log_sigma())


def test_methods_without_a_posterior_have_no_sigma_and_no_divergence(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(method="structured-lora")
    assert trainer.train().gradient_steps == 3 * 2
    for row in trainer.folder.rows():
        assert (row["kl"], row["prior"], row["log_sigma"], row["outer_grad_norm"]) == (0.0, 0.0, None, 0.0)
    assert {path.name for path in (trainer.folder.path / "checkpoint-3").glob("optimizer*")} == {
        "optimizer_phi.safetensors"
    }


@pytest.mark.parametrize(
    ("settings", "outer_batch"),
    [
        ({"outer_gradient": "first-order"}, 1),
        ({"outer_gradient": "first-order", "outer_batch": "query"}, 2),
        ({"method": "structured-lora", "outer_batch": "query"}, 2),
    ],
)
def test_the_outer_step_gets_the_last_or_the_query_batch(
    make_trainer: MakeTrainer, settings: dict[str, Any], outer_batch: int
) -> None:
    trainer = make_trainer(**settings, max_steps=1)
    close, seen = trainer.rule.outer_step, []

    def outer_step(*args: Any) -> Loss | None:
        seen.append(args[1])
        return close(*args)

    spy(trainer, outer_step=outer_step)
    trainer.train()
    drawn = list(trainer.visits.batches(0))
    assert len(drawn) == outer_batch + 1
    [batch] = seen
    assert torch.equal(batch.input_ids, drawn[outer_batch].input_ids)


def test_tokens_count_what_the_model_read(make_trainer: MakeTrainer) -> None:
    def tokens(**settings: Any) -> tuple[int, list[int]]:
        trainer = make_trainer(**settings, max_steps=1)
        read = trainer.train(overwrite=True).tokens
        return read, [batch.num_tokens for batch in trainer.visits.batches(0)]

    read, batches = tokens()
    assert read == sum(batches)  # the outer step needs no forward pass
    read, batches = tokens(outer_gradient="first-order")
    assert read == sum(batches) + batches[-1]


def test_the_trained_theta_is_in_the_model_and_on_disk(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    trainer = make_trainer()
    trainer.train()
    saved = load_bundle(trainer.folder.path / "checkpoint-3", STATE)
    for name, tensor in tiny_model.theta.state_dict().items():
        assert torch.equal(saved.tensors["theta"][name], tensor)
    assert tiny_model.num_tasks == 3
    assert tiny_model.learning == LearningConfig(inner_steps=2, per_device_train_batch_size=2)
    assert not any(tensor.requires_grad for _, tensor in tiny_model.theta.named_tensors())


def test_describe_counts_what_will_learn(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    count = tiny_model.theta.num_parameters()
    assert f"ABMLL: 3 tasks, 144 training examples; {2 * count:,} trainable numbers in 3 layers" in (
        make_trainer().describe()
    )
    means = sum(tensor.numel() for tensor in tiny_model.theta.mean_tensors())
    assert f"{means:,} trainable" in make_trainer(method="structured-lora").describe()


# -- every setting counts -----------------------------------------------------------------------------------------

BASE: dict[str, Any] = {"max_steps": 2, "gamma": 0.04, "beta": 1e-3, "outer_gradient": "first-order"}
CHANGES: dict[str, Any] = {
    "method": "structured-lora",
    "inner_steps": 3,
    "per_device_train_batch_size": 3,
    "learning_rate": 6e-4,
    "scale_learning_rate": 3e-2,
    "outer_learning_rate": 2e-2,
    "outer_scale_learning_rate": 3e-2,
    "weight_decay": 0.1,
    "beta": 2e-3,
    "gamma": 0.2,
    "prior_std": 0.5,
    "gamma_shape": 2.0,
    "gamma_rate": 0.001,
    "noise": "shared",
    "noise_rank": 4,
    "loss": "tokens",
    "outer_batch": "query",
    "outer_gradient": "prior",
    "moments": "reset",
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "max_grad_norm": 0.5,
    "seed": 1,
}


@pytest.fixture
def learned(make_trainer: MakeTrainer) -> Callable[..., list[torch.Tensor]]:
    def run(**settings: Any) -> list[torch.Tensor]:
        trainer = make_trainer(**{**BASE, **settings})
        trainer.train(overwrite=True)
        return [tensor for _, tensor in trainer.model.theta.named_tensors()]

    return run


def test_every_learning_setting_changes_what_is_learned(learned: Callable[..., list[torch.Tensor]]) -> None:
    assert CHANGES.keys() | OWN.keys() | set(READOUT) == {field.name for field in fields(LearningConfig)}
    base = learned()
    assert all(torch.equal(one, other) for one, other in zip(base, learned(), strict=True))
    ignored = [
        name
        for name, value in CHANGES.items()
        if all(torch.equal(one, other) for one, other in zip(base, learned(**{name: value}), strict=True))
    ]
    assert ignored == []


# The settings of single methods, with one that has them.
OWN: dict[str, tuple[str, Any]] = {
    "meta_batch": ("fomaml", 2),
    "inner_sgd_rate": ("maml", 0.2),
    "inner_sgd_scale_rate": ("abml", 0.2),
    "reptile_epsilon": ("reptile", 0.25),
    "num_demonstrations": ("metaicl", 2),
}
READOUT = ("readout_tasks", "readout_examples")  # of what is learned once theta is: see test_readout.py


@pytest.mark.parametrize("setting", OWN)
def test_a_method_s_own_setting_changes_what_is_learned(
    learned: Callable[..., list[torch.Tensor]], setting: str
) -> None:
    method, value = OWN[setting]
    base, changed = learned(method=method), learned(method=method, **{setting: value})
    assert not all(torch.equal(one, other) for one, other in zip(base, changed, strict=True))


def test_every_run_setting_counts(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    assert {field.name for field in fields(RunConfig)} == {
        "max_steps",
        "save_steps",
        "save_total_limit",
        "trunk_cache_gb",
        "trunk_cache_dir",
        "trunk_cache_disk_gb",
    }
    trainer = make_trainer(
        output_dir=str(tmp_path / "other"), max_steps=6, save_steps=2, save_total_limit=3, trunk_cache_gb=1e-6
    )
    assert trainer.train().visits == 6
    assert list(checkpoints(tmp_path / "other")) == [2, 4, 6]
    cache = trainer.visits.cache
    assert cache is not None
    assert cache.max_bytes == 1000
    assert make_trainer(trunk_cache_gb=0.0).visits.cache is None


# -- stopping honestly --------------------------------------------------------------------------------------------


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
    unmoved = f"the mean of {'theta' if zero else 'phi'} did not move in the first visit; are the learning"
    with pytest.raises(TrainingError, match=rf"^visit 1, task 'toy\d': {unmoved}"):
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
    name = trainer.visits.name(2)
    with pytest.raises(TrainingError) as caught:
        trainer.train(resume=True)
    wanted = f"visit 3, task '{name}': step 1: the loss term 'nll' is nan; lower the learning rates"
    assert str(caught.value) == wanted
    assert {path: path.read_bytes() for path in (trainer.folder.path / "checkpoint-2").iterdir()} == whole
    load_bundle(trainer.folder.path / "checkpoint-2", STATE)
    assert len(trainer.folder.rows()) == 2


def test_a_learning_rate_that_blows_up_names_term_visit_and_task(make_trainer: MakeTrainer) -> None:
    words = r"^visit 1, task 'toy\d': step 2: the loss term '(nll|kl)' is (nan|inf); lower the learning rates$"
    with pytest.raises(TrainingError, match=words):
        make_trainer(learning_rate=1e30).train()


def test_a_theta_that_is_not_finite_is_never_saved(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=1)
    close: Any = trainer.rule.outer_step

    def outer_step(state: State, *args: Any) -> Loss | None:
        loss = close(state, *args)
        state.theta.mean_tensors()[0].data[0, 0, 0] = torch.inf
        return loss

    spy(trainer, outer_step=outer_step)
    with pytest.raises(TrainingError, match=r"visit 1, task 'toy\d': theta's \w+\.mean_A is not finite after the step"):
        trainer.train()
    assert list(checkpoints(trainer.folder.path)) == []


def interrupt_at(trainer: MetaTrainer, visit: int) -> None:
    """Ctrl-C in the middle of a visit."""
    step, calls = trainer.rule.inner_step, iter(range(10**6))

    def inner_step(*args: Any) -> Loss:
        if next(calls) == 2 * visit + 1:
            raise KeyboardInterrupt
        return step(*args)

    spy(trainer, inner_step=inner_step)


def test_ctrl_c_says_where_to_resume(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=6, save_steps=2)
    interrupt_at(trainer, visit=5)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert str(caught.value) == f"{tmp_path / 'run'}: run the same command with --resume to go on from visit 4"
    assert len(trainer.folder.rows()) == 5
    assert make_trainer(max_steps=6, save_steps=2).train(resume=True).gradient_steps == 2 * 3
    assert len(trainer.folder.rows()) == 6


def test_ctrl_c_before_the_first_checkpoint_says_so(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    interrupt_at(trainer, visit=0)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    wanted = f"{tmp_path / 'run'}: run the same command with --overwrite: no checkpoint was due yet"
    assert str(caught.value) == wanted


def test_tasks_and_settings_are_checked_before_anything_is_written(
    make_trainer: MakeTrainer, tiny_model: AbmllModel, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="48 training examples, but a visit takes 2 batches of 30"):
        make_trainer(per_device_train_batch_size=30)
    with pytest.raises(ConfigError, match=r"method: unknown 'abmmll'; Did you mean 'abmll'\?"):
        make_trainer(method="abmmll")
    with pytest.raises(ConfigError, match="outer_batch is 'query', but"):
        make_trainer(outer_batch="query")
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
    assert json.loads((trainer.folder.path / "metrics.jsonl").read_text())["visit"] == 1
