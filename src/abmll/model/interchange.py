"""The posterior mean for other programs: a plain PEFT LoRA adapter, or a whole model with the update merged in."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abmll.common.errors import AbmllError, ConfigError
from abmll.common.files import atomic_folder
from abmll.language.adapter import Adapter
from abmll.language.base import is_quantised, no_progress_bars
from abmll.language.scorer import OptionScorer
from abmll.language.wiring import AdaptedLinear


def export_peft(scorer: OptionScorer, phi: Adapter, folder: Path, overwrite: bool = False) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes them.

    The update (lora_alpha / r) B A is the mean's; standard deviations are left out. Every adapted layer is named in
    full, so that PEFT's matching rules cannot reach any other.
    """
    layers = phi.by_layer()
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.mean_A.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.mean_B.detach().cpu().contiguous()
    adapter = scorer.adapter_config
    transposed = any(isinstance(_base_layer(scorer, name), Conv1D) for name in layers)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(scorer.base.model.name_or_path),
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "target_modules": sorted(layers),
    }
    with atomic_folder(folder, overwrite=overwrite) as target:
        (target / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def export_merged(scorer: OptionScorer, phi: Adapter, folder: Path, overwrite: bool = False) -> None:
    """Write model and tokenizer with W0 + (lora_alpha / r) B A as weights, in the base model's dtype.

    The model in memory is not touched. Raises ``ConfigError`` for a base whose weights are not plain numbers.
    """
    model = scorer.base.twin().model
    merged: dict[str, Tensor] = {}
    for name, layer in phi.by_layer().items():
        weight = _base_layer(scorer, name).weight
        if is_quantised(weight):
            raise ConfigError(
                f"{name}: cannot merge into a quantised layer; export with --format peft, and let PEFT merge the adapter "
                "into the model as it was before it was quantised"
            )
        update = scorer.space.scaling * layer.mean_B @ layer.mean_A
        update = update.T if isinstance(_base_layer(scorer, name), Conv1D) else update
        merged[f"{name}.weight"] = (weight.float() + update).to(weight.dtype)
    with atomic_folder(folder, overwrite=overwrite) as target, no_progress_bars():
        try:
            model.save_pretrained(target, state_dict=model.state_dict() | merged)
        except SafetensorError as error:  # its word for a disk that takes no more
            raise AbmllError(f"cannot write {folder}: {error}; free some space or choose another folder") from error
        scorer.base.tokenizer.save_pretrained(target)


def _base_layer(scorer: OptionScorer, name: str) -> nn.Module:
    wrapped = scorer.adapted[name]
    assert isinstance(wrapped, AdaptedLinear)
    return wrapped.inner
