"""A base whose layers accelerate has placed computes what it does on one device.

The disk stands for the other device: what lies there is read for each pass, by the hooks that serve several GPUs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.config import LearningConfig, ModelConfig
from abmll.common.errors import ConfigError
from abmll.language import placement
from abmll.language.base import Base, load_base
from tests.conftest import SHORT, toy_task


def placed(folder: Path, disk: Path) -> Base:
    """The model in ``folder`` with its upper decoder block on disk."""
    base = load_base(ModelConfig(str(folder), device="cpu", dtype="fp32"), print, quiet=True)
    blocks = "transformer.h" if base.model.config.model_type == "gpt2" else "model.layers"
    around = [f"{blocks.partition('.')[0]}.{name}" for name, _ in base.model.base_model.named_children()]
    places = dict.fromkeys([*around, "lm_head", f"{blocks}.0"], "cpu") | {f"{blocks}.1": "disk"}
    del places[blocks]
    placement.spread(base.model, places, disk)
    assert any(parameter.is_meta for parameter in base.model.parameters())
    return base


def learned(base: Base, checkpointing: bool = False) -> dict[str, Tensor]:
    """What a task becomes by steps and by a head, with adapters on both blocks, and how its questions are answered."""
    model = AbmllModel.from_base(base, prompt=SHORT, r=2, layers_to_transform="0,1", target_modules=["all-linear"])
    model.learning = LearningConfig()
    if checkpointing:
        model.gradient_checkpointing_enable()
    examples = toy_task("letters").examples
    found: dict[str, Any] = {"head": model.adapt(examples[:20], how="head").predict(examples[20:30]).probs}
    by_steps = model.adapt(examples[:20], steps=3, how="full")
    found |= {how: by_steps.predict(examples[20:30], predictive=how).probs for how in ("samples", "linearized")}
    [phi] = [one for one in by_steps.members if one is not None]
    return {name: torch.as_tensor(value) for name, value in found.items()} | phi.state_dict()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_layers_that_lie_elsewhere_compute_the_same(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = family_folder(family)
    plain = learned(load_base(ModelConfig(str(folder), device="cpu", dtype="fp32"), print, quiet=True))
    base = placed(folder, tmp_path)
    twin = base.twin()
    torch.testing.assert_close(learned(base), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(learned(twin, checkpointing=True), plain, atol=1e-6, rtol=0)


def test_a_map_keeps_blocks_whole_and_refuses_the_disk(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    base = load_base(ModelConfig(str(tiny_llama), device="cpu"), print, quiet=True)
    assert set(placement.device_map_of(base.model, "sequential").values()) <= {"cpu"}
    infer = accelerate.infer_auto_device_map
    size = sum(one.nbytes for one in base.model.parameters())

    def cramped(model: Any, max_memory: Any, **whole: Any) -> dict[str, Any]:
        return infer(model, max_memory={"cpu": size // 2}, **whole)

    monkeypatch.setattr(accelerate, "infer_auto_device_map", cramped)
    with pytest.raises(ConfigError, match=r"^device_map: the model does not fit into the memory of the GPUs and"):
        placement.device_map_of(base.model, "sequential")


def test_processes_of_one_computer_do_not_spread_over_the_same_gpus(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^device_map: each of the 2 processes .*; start one process, or use shard_"):
        load_base(ModelConfig(str(tiny_llama), device="cpu", device_map="auto"), print, quiet=True)


def test_without_a_gpu_there_is_nothing_to_spread(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"^device_map: there is no GPU to spread the model over; leave it out$"):
        load_base(ModelConfig(str(tiny_llama), device="cpu", device_map="auto"), print, quiet=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_lie_elsewhere_are_trained_with_and_exported(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    found = []
    plain = load_base(ModelConfig(str(family_folder(family)), device="cpu", dtype="fp32"), print, quiet=True)
    for name, base in {"plain": plain, "placed": placed(family_folder(family), tmp_path / "disk")}.items():
        model = AbmllModel.from_base(base, prompt=SHORT, r=2, layers_to_transform="0,1", target_modules=["all-linear"])
        short: dict[str, Any] = {"max_steps": 2, "inner_steps": 2, "calibration_tasks": 0}
        MetaTrainer(model, [toy_task("toy")], TrainConfig(output_dir=str(tmp_path / name / "run"), **short)).train()
        posterior = model.theta_as_posterior("toy")
        posterior.export_peft(tmp_path / name / "peft")
        posterior.export_merged(tmp_path / name / "merged")
        files = [tmp_path / name / file for file in ("peft/adapter_model.safetensors", "merged/model.safetensors")]
        found.append([load_file(file) for file in files])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=0)
