"""Every setting of a training run counts: another value, another result."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import MetaTrainer
from abmll.common.checkpoint import checkpoints
from abmll.common.config import LearningConfig, RunConfig

MakeTrainer = Callable[..., MetaTrainer]


BASE: dict[str, Any] = {"max_steps": 2, "gamma": 0.04, "beta": 1e-3}
CHANGES: dict[str, Any] = {
    "method": "structured-lora",
    "inner_steps": 3,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
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
    assert CHANGES.keys() | OWN.keys() | set(CALIBRATION) == {field.name for field in fields(LearningConfig)}
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
CALIBRATION = ("calibration_tasks", "calibration_examples")  # of what is learned once theta is: see test_calibration.py


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
        "activation_cache_gb",
        "activation_cache_dir",
        "activation_cache_disk_gb",
        "gradient_checkpointing",
        "report_to",
    }
    trainer = make_trainer(
        output_dir=str(tmp_path / "other"), max_steps=6, save_steps=2, save_total_limit=3, activation_cache_gb=1e-6
    )
    assert trainer.train().episodes == 6
    assert list(checkpoints(tmp_path / "other")) == [2, 4, 6]
    cache = trainer.episodes.cache
    assert cache is not None
    assert cache.kept.max_bytes == 1000
    assert make_trainer(activation_cache_gb=0.0).episodes.cache is None
