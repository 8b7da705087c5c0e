"""Gradient steps in parts: the step of one large batch, with the memory of a small one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError
from abmll.methods import OUTER, REGISTRY, Loss
from abmll.tasks import Task

Train = Callable[..., tuple[MetaTrainer, dict[str, Loss], dict[str, Tensor]]]
WHOLE, CUT = {"per_device_train_batch_size": 6}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
CANNOT = ["maml", "abml", "trained-head"]


@pytest.fixture
def episode(tiny_llama: Path, toy_tasks: list[Task], tmp_path: Path) -> Train:
    """The first episode of a method: its trainer, its losses and theta's tensors after it."""

    def run(method: str, **settings: Any) -> tuple[MetaTrainer, dict[str, Loss], dict[str, Tensor]]:
        adapter: dict[str, Any] = {"space": settings.pop("space", "weight"), "r": 2, "layers_to_transform": "top-1"}
        adapter["init_log_sigma"] = settings.pop("init_log_sigma", -5.0)
        prompt = PromptConfig(instruction=False, list_options=False)
        model = AbmllModel.from_base(str(tiny_llama), prompt=prompt, dtype="fp32", device="cpu", **adapter)
        config = TrainConfig(
            method=method, output_dir=str(tmp_path), max_steps=2, inner_steps=3, learning_rate=1e-2, **settings
        )
        trainer = MetaTrainer(model, toy_tasks, config)
        state = trainer.rule.init(model.theta)
        losses, share = trainer.outer_step.learn(state, 0)
        norms = trainer.rule.take(state, share, rate=1.0)
        if OUTER in losses:
            losses[OUTER] = losses[OUTER].stepped(norms)
        return trainer, losses, {name: tensor.detach() for name, tensor in state.theta.named_tensors()}

    return run


def assert_same(cut: tuple[Any, ...], whole: tuple[Any, ...], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for name, loss in whole[1].items():
        parts = cut[1][name]
        assert (parts.size, int(parts.correct)) == (loss.size, int(loss.correct))
        for term in ("total", "nll", "kl", "prior", "grad_norm"):
            torch.testing.assert_close(getattr(parts, term), getattr(loss, term), rtol=rtol, atol=atol)
        if loss.options is not None:
            torch.testing.assert_close(parts.options, loss.options, rtol=rtol, atol=10 * atol)
    for name, tensor in whole[2].items():
        torch.testing.assert_close(cut[2][name], tensor, rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["structured-lora", "regular-lora", "reptile", "fomaml", "metaicl"])
def test_parts_make_the_step_of_one_large_batch(episode: Train, method: str) -> None:
    parts = episode(method, **CUT)
    assert [loss.passes for loss in parts[1].values()][:3] == [3, 3, 3]
    assert_same(parts, episode(method, **WHOLE))


def test_with_next_to_no_noise_parts_make_the_same_step_of_abmll(episode: Train) -> None:
    settings: dict[str, Any] = {"init_log_sigma": -12.0, "beta": 0.3, "gamma": 0.1}
    parts = episode("abmll", **CUT, **settings)
    assert parts[1]["step 3"].kl > 0
    assert_same(parts, episode("abmll", **WHOLE, **settings), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("space", ["weight", "output"])
def test_a_divergence_of_weights_counts_once_and_one_of_activations_in_every_part(episode: Train, space: str) -> None:
    """The gradient of a step in parts is that of the written-out loss under the same noise."""
    trainer, _, _ = episode("abmll", **CUT, space=space, beta=1.0)
    rule, batch = trainer.rule, next(trainer.episodes.batches(0))
    state = rule.init(trainer.model.theta)
    for _, tensor in state.phi.named_tensors():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    generator = trainer.episodes.generator(0, 0)
    losses = [rule.inner_loss(state, part, generator) for part in batch.parts]
    nll, kl = (torch.stack([getattr(loss, term) for loss in losses]) for term in ("nll", "kl"))
    divergence = kl.sum() if space == "output" else kl[0]
    expected = torch.autograd.grad(nll.sum() + divergence, [tensor for _, tensor in state.phi.named_tensors()])
    step = rule.inner_step(state, batch, trainer.episodes.generator(0, 0), 1.0)
    torch.testing.assert_close((step.nll, step.kl, step.total), (nll.sum(), divergence, nll.sum() + divergence))
    moments = state.optimizers()["optimizer_phi"].tensors()
    for (name, _), gradient in zip(state.phi.named_tensors(), expected, strict=True):
        torch.testing.assert_close(10 * moments[f"{name}.exp_avg"], gradient, rtol=1e-4, atol=1e-6)


def test_a_task_with_fewer_examples_has_fewer_or_smaller_parts(episode: Train, toy_tasks: list[Task]) -> None:
    toy_tasks[:] = [Task(task.name, task.train[:6]) for task in toy_tasks]  # five to train on
    trainer, losses, _ = episode("structured-lora", **CUT)
    batch = next(trainer.episodes.batches(0))
    assert [len(part.answers) for part in batch.parts] == [2, 2, 1]
    assert losses["step 1"].size == 5
    assert losses["step 1"].options is not None
    assert losses["step 1"].options.shape == (5, 2)


def test_one_part_at_a_time_is_in_memory(episode: Train) -> None:
    """What autograd keeps of a step in three parts is what it keeps of the largest of them."""
    trainer, _, _ = episode("structured-lora", **CUT)
    held, peak = 0, 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, peak
            self.tensor, self.size = tensor, tensor.nbytes
            held += self.size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    def most(batch: Any) -> int:
        nonlocal peak
        peak = held
        state = trainer.rule.init(trainer.model.theta)
        before = held
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            trainer.rule.inner_step(state, batch, trainer.episodes.generator(0, 0), 1.0)
        return peak - before

    batch = next(trainer.episodes.batches(0))
    assert len(batch.parts) == 3
    assert most(batch) == max(most(part) for part in (replace(batch, rest=()), *batch.rest))


@pytest.mark.parametrize("method", CANNOT)
def test_a_method_whose_steps_stay_in_memory_is_refused(episode: Train, method: str) -> None:
    assert [name for name, rule in REGISTRY.items() if not rule.accumulates] == CANNOT
    with pytest.raises(ConfigError, match=f"gradient_accumulation_steps is 3, but {method} keeps the graphs of all"):
        episode(method, **CUT)
