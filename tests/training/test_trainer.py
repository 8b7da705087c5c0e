"""MetaTrainer: it learns, and it writes what it says."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.checkpoint import STATE, checkpoints, load_bundle
from abmll.common.config import LearningConfig, PromptConfig
from abmll.common.errors import DataError
from abmll.methods import Loss
from abmll.model.prediction import Prediction
from abmll.tasks import Example, Task
from abmll.training.outer_step import mean_log_sigma

MakeTrainer = Callable[..., MetaTrainer]


# -- learning -----------------------------------------------------------------------------------------------------


def letters_task(name: str, seed: int, size: int = 60) -> Task:
    """Words of a and b are called yes, words of y and z no: learnable in a few episodes, the same rule everywhere."""
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
        lr_scheduler_type="constant",
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


@pytest.mark.parametrize("method", ["abmll", "maml", "metaicl", "regular-lora"])
def test_small_tasks_are_learned_like_others(tiny_model: AbmllModel, tmp_path: Path, method: str) -> None:
    """An episode takes 48 examples; about 19 of 24 rows are for training. Every task takes as many steps."""
    sizes = (24, 24, 3, 100) + (() if method == "maml" else (1, 2))
    tasks = [letters_task(f"task{number}", number, size) for number, size in enumerate(sizes)]
    config = TrainConfig(method=method, max_steps=len(sizes), inner_steps=12, output_dir=str(tmp_path / "run"))
    trainer = MetaTrainer(tiny_model, tasks, config)
    result = trainer.train()
    assert {row["steps"] for row in trainer.folder.rows("timing.jsonl")} == {result.gradient_steps // len(sizes)}
    assert all(math.isfinite(row["nll"]) for row in trainer.folder.rows())


def test_a_task_too_small_for_a_query_batch_is_named(tiny_model: AbmllModel, tmp_path: Path) -> None:
    tasks = [letters_task("large", 0), replace(letters_task("one", 1, 1), source="one.jsonl")]
    with pytest.raises(DataError, match=r"^one.jsonl: 1 training examples, but this method needs at least 2 of each"):
        MetaTrainer(tiny_model, tasks, TrainConfig(method="maml", output_dir=str(tmp_path / "run")))


# -- what is written ----------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_says(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=5, save_steps=2)
    result = trainer.train()
    run = tmp_path / "run"
    assert (result.folder, result.episodes, result.gradient_steps) == (run, 5, 5 * 3)
    assert list(checkpoints(run)) == [4, 5]  # every second episode and the last, the two newest kept
    names = {path.name for path in run.rglob("*") if path.is_file()}
    tensors = {"theta.safetensors", "optimizer_phi.safetensors", "optimizer_theta.safetensors"}
    documents = {"config.yaml", "metrics.jsonl", "timing.jsonl", "README.md", "state.json", "manifest.json"}
    documents |= {"calibration.json"}
    assert names == documents | tensors
    card = (run / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front  # a folder of this computer
    assert front["library_name"] == "abmll"
    assert f"adapter for {Path(trainer.settings()['model']).name}\n" in card
    assert all(task.name in card for task in trainer.episodes.tasks)
    assert f"{sum(row['nll'] for row in trainer.folder.rows()[-3:]) / 3:.3f} nats" in card
    timing = trainer.folder.rows("timing.jsonl")
    assert [row["episode"] for row in timing] == [1, 2, 3, 4, 5]
    assert sum(row["tokens"] for row in timing) == result.tokens
    kinds = {"episode", "seconds", "tokens", "steps", "forward_passes", "demonstrations_left_out"}
    assert all(row.keys() == kinds for row in timing)


def test_metrics_are_those_of_the_episodes(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    inner: list[Loss] = []
    outer: list[Loss] = []
    share = trainer.rule.share
    step, take = trainer.rule.inner_step, trainer.rule.take

    def inner_step(*args: Any) -> Loss:
        inner.append(step(*args))
        return inner[-1]

    def shared(*args: Any) -> tuple[Loss | None, dict[str, Tensor]]:
        loss, tensors = share(*args)
        assert loss is not None
        outer.append(loss)
        return loss, tensors

    def taken(*args: Any) -> Mapping[str, Tensor]:
        norms = take(*args)
        outer[-1] = outer[-1].stepped(norms)
        return norms

    vars(trainer.rule).update(inner_step=inner_step, share=shared, take=taken)
    trainer.train()
    rows = trainer.folder.rows()
    keys = "episode task nll accuracy loss kl prior grad_norm outer_grad_norm log_sigma"
    assert all(list(row) == keys.split() for row in rows)
    assert [row["episode"] for row in rows] == [1, 2, 3]
    assert sorted(row["task"] for row in rows) == ["toy0", "toy1", "toy2"]
    for episode, row in enumerate(rows):
        two = inner[2 * episode : 2 * episode + 2]
        assert row["nll"] == pytest.approx(sum(float(loss.nll) for loss in two) / 4)  # per example: 2 batches of 2
        assert row["accuracy"] == sum(int(loss.correct) for loss in two) / 4
        assert (row["grad_norm"], row["outer_grad_norm"]) == (float(two[-1].grad_norm), float(outer[episode].grad_norm))
        assert (row["kl"], row["prior"]) == (float(outer[episode].kl), float(outer[episode].prior))
        beta, gamma = trainer.config.beta, trainer.config.gamma
        assert row["loss"] == pytest.approx(beta * row["kl"] + gamma / 3 * row["prior"])
    assert rows[-1]["log_sigma"] == pytest.approx(mean_log_sigma(trainer.model.scorer.space, trainer.model.theta))


def test_methods_without_a_posterior_have_no_sigma_and_no_divergence(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(method="structured-lora")
    assert trainer.train().gradient_steps == 3 * 2
    for row in trainer.folder.rows():
        assert (row["kl"], row["prior"], row["log_sigma"], row["outer_grad_norm"]) == (0.0, 0.0, None, 0.0)
    assert {path.name for path in (trainer.folder.path / "checkpoint-3").glob("optimizer*")} == {
        "optimizer_phi.safetensors"
    }


@pytest.mark.parametrize(("method", "outer_batch"), [("abmll", 1), ("structured-lora", 1), ("fomaml", 2)])
def test_the_outer_step_gets_the_last_or_the_query_batch(
    make_trainer: MakeTrainer, method: str, outer_batch: int
) -> None:
    trainer = make_trainer(method=method, max_steps=1)
    share, seen = trainer.rule.share, []

    def shared(*args: Any) -> tuple[Loss | None, dict[str, Tensor]]:
        seen.append(args[1])
        return share(*args)

    vars(trainer.rule).update(share=shared)
    trainer.train()
    drawn = list(trainer.episodes.batches(0))
    assert len(drawn) == outer_batch + 1
    [batch] = seen
    assert torch.equal(batch.input_ids, drawn[outer_batch].input_ids)


def test_tokens_count_what_the_model_read(make_trainer: MakeTrainer) -> None:
    def tokens(**settings: Any) -> tuple[int, list[int]]:
        trainer = make_trainer(**settings, max_steps=1)
        read = trainer.train(overwrite=True).tokens
        return read, [batch.num_tokens for batch in trainer.episodes.batches(0)]

    read, batches = tokens()
    assert read == sum(batches)  # the outer step needs no forward pass
    read, batches = tokens(method="abml")
    assert read == sum(batches) + sum(batches[:-1])  # its outer step reads the whole task


def test_the_trained_theta_is_in_the_model_and_on_disk(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    trainer = make_trainer()
    trainer.train()
    saved = load_bundle(trainer.folder.path / "checkpoint-3", STATE)
    for name, tensor in tiny_model.theta.state_dict().items():
        assert torch.equal(saved.tensors["theta"][name], tensor)
    assert tiny_model.num_tasks == 3
    assert tiny_model.learning == LearningConfig(
        inner_steps=2, per_device_train_batch_size=2, lr_scheduler_type="constant"
    )
    assert not any(tensor.requires_grad for _, tensor in tiny_model.theta.named_tensors())


def test_describe_counts_what_will_learn(make_trainer: MakeTrainer, tiny_model: AbmllModel) -> None:
    count = sum(tensor.numel() for _, tensor in tiny_model.theta.named_tensors())
    assert f"ABMLL: 3 tasks, 144 training examples; {2 * count:,} trainable numbers in 3 layers" in (
        make_trainer().describe()
    )
    means = sum(tensor.numel() for tensor in tiny_model.theta.mean_tensors())
    assert f"{means:,} trainable" in make_trainer(method="structured-lora").describe()
