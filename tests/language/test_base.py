"""Loading a language model: its context, and one clear line for each thing that can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.utils import logging

from abmll.common.errors import AbmllError, CheckpointError, ConfigError
from abmll.language.base import no_progress_bars, resolve_dtype
from tests.language.folders import WEIGHTS, alter, load


def refusal(kind: type[AbmllError], folder: Path | str, **how: Any) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(kind) as caught:
        load(folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loaded_model_is_frozen_in_evaluation_mode_and_in_the_precision_asked_for(tiny_llama: Path) -> None:
    for dtype, expected in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        base = load(tiny_llama, dtype)
        assert {parameter.dtype for parameter in base.model.parameters()} == {expected}
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
        assert not base.model.training
        assert base.name == str(tiny_llama)


def test_the_context_is_that_of_the_narrowest_layer(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    assert load(folder).context == document["max_position_embeddings"] == 2048
    (folder / "config.json").write_text(json.dumps(document | {"sliding_window": 16}))
    assert load(folder).context == 16
    layers = {"sliding_window": 16, "layer_types": ["full_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(document | layers))
    assert load(folder).context == 2048


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert refusal(CheckpointError, tmp_path / "none") == (
        f"model: there is no folder {tmp_path / 'none'}; give a folder, a Hugging Face name or smollm2-135m"
    )
    assert "there is no folder ~/none-of-that" in refusal(CheckpointError, "~/none-of-that")


def test_a_slip_in_the_embedded_model_s_name_is_not_looked_up_on_a_hub() -> None:
    message = refusal(CheckpointError, "SmolLM-135M")
    assert message == "model: there is no folder or model SmolLM-135M. Did you mean 'smollm2-135m'?"


def test_a_folder_in_the_home_directory_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/model").fingerprint == load(folder).fingerprint


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    assert "there is no folder" in refusal(CheckpointError, folder / WEIGHTS)


@pytest.mark.parametrize("names", [[WEIGHTS], ["config.json"], ["tokenizer.json"]])
def test_a_folder_that_lacks_a_file(names: list[str], folder: Path) -> None:
    for name in names:
        (folder / name).unlink()
    assert refusal(CheckpointError, folder).startswith(f"model: cannot load {folder}: ")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(CheckpointError, tmp_path).startswith(f"model: cannot load {tmp_path}: ")


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_truncated_weights(size: int, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    assert refusal(CheckpointError, folder).startswith(f"model: cannot load {folder}: ")


def test_a_bit_flipped_in_the_header_of_the_weights(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[20] ^= 0x80
    (folder / WEIGHTS).write_bytes(bytes(data))
    assert refusal(CheckpointError, folder).startswith(f"model: cannot load {folder}: ")


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    alter(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert refusal(CheckpointError, folder) == f"model: {folder} lacks weights: model.layers.1.mlp.up_proj.weight"


def test_weights_of_another_shape(folder: Path) -> None:
    alter(folder, lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}))
    assert refusal(CheckpointError, folder).startswith(f"model: cannot load {folder}: ")


def test_a_model_that_is_no_causal_language_model(folder: Path) -> None:
    AutoConfig.for_model("t5", d_model=16, num_layers=1, d_ff=16, num_heads=2, d_kv=8).save_pretrained(folder)
    assert "T5Config" in refusal(CheckpointError, folder)


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_there(device: str, tiny_llama: Path) -> None:
    message = refusal(ConfigError, tiny_llama, device=device)
    assert message == f"device: '{device}' is not available here; use cpu, cuda, mps or auto"


def test_an_unknown_precision(tiny_llama: Path) -> None:
    assert "fp16" in refusal(ConfigError, tiny_llama, dtype="fp16")


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for able, expected in [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert resolve_dtype("auto", cpu) == expected
        assert resolve_dtype("fp32", cpu) == "fp32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_dtype("auto", cpu) == "fp32"


def test_progress_bars_are_as_before_after_an_error() -> None:
    def fail() -> None:
        with no_progress_bars():
            assert not logging.is_progress_bar_enabled()
            raise KeyError

    logging.enable_progress_bar()  # another test of the same process may have switched them off
    with pytest.raises(KeyError):
        fail()
    assert logging.is_progress_bar_enabled()
