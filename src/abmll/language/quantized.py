"""Frozen models whose weights are codes and scales: loading them so, and what their libraries keep beside the weights.

transformers does the loading, bitsandbytes and torchao have the layers. Gradients pass through such a layer to its
input, which is all that an adapter beside it needs.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from abmll.common.errors import ConfigError

LIBRARIES = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "load_in_int8_torchao": "torchao"}


def loading(
    quantization: str | None,
    source: Path | str,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    cached: bool,
    device_map: str | None = None,
) -> dict[str, Any]:
    """What ``from_pretrained`` must be told to load the model in ``source``, called ``name``, by that setting.

    Raises ``ConfigError`` where the library is not installed, and for a model that is quantised already.
    """
    if quantization is None:
        return {}
    lacking = [library for library in (LIBRARIES[quantization], "accelerate") if find_spec(library) is None]
    if lacking:
        raise ConfigError(f'{quantization}: needs {" and ".join(lacking)}; run: pip install "abmll[quantized]"')
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=cached)
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(f"{quantization}: {name} is quantised already and is loaded as it is; leave the setting out")
    # Without a map, one with one place: the weights are quantised where they will lie.
    return {"quantization_config": _config(quantization, dtype), "device_map": device_map or {"": device}}


def _config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig:
    """NF4 with quantised scales is QLoRA's choice (arXiv 2305.14314); the rest are the libraries' own."""
    if quantization == "load_in_4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "load_in_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def settle(model: PreTrainedModel) -> None:
    """Let bitsandbytes' layers be from now on what they are after a first pass, and compute the same in every pass.

    Without gradients a 4-bit layer on a CPU would rearrange its weight, for a kernel that no gradient passes through,
    and an 8-bit one would round its inputs, although not in training. Neither does so in training mode, which changes
    nothing else in them. Raises ``ConfigError`` where it would read the codes of 4-bit layers wrongly.
    """
    for layer in _layers_of_bitsandbytes(model):
        layer.train()
        state = getattr(layer.weight, "quant_state", None)
        if state is not None and layer.weight.device.type == "cpu" and layer.in_features % state.blocksize:
            # Seen in bitsandbytes 0.50.2: such layers are twice as far from the weights as rounding alone puts them.
            raise ConfigError(
                f"load_in_4bit: this model has rows of {layer.in_features} weights, no multiple of {state.blocksize}, "
                "whose scales bitsandbytes mistakes on a CPU; use load_in_8bit, or a GPU"
            )
        if getattr(layer.weight, "CB", None) is not None:
            layer.init_8bit_state()


def side_tensors(model: PreTrainedModel) -> list[Tensor]:
    """The scales, and what else bitsandbytes keeps of a weight that is neither a parameter nor a buffer."""
    states: list[Any] = []
    for layer in _layers_of_bitsandbytes(model):
        four_bit = [getattr(layer.weight, "quant_state", None), getattr(layer, "quant_state", None)]
        nested = [getattr(state, "state2", None) for state in four_bit]  # of scales that are quantised themselves
        states += [*four_bit, *nested, getattr(layer, "state", None)]
    kept = [value for state in states if state is not None for value in vars(state).values()]
    return list({id(value): value for value in kept if isinstance(value, Tensor)}.values())


def _layers_of_bitsandbytes(model: PreTrainedModel) -> list[Any]:
    """The quantised linear layers; none where the library had no part in loading the model."""
    if getattr(model, "quantization_method", None) != "bitsandbytes":
        return []
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    return [module for module in model.modules() if isinstance(module, Linear4bit | Linear8bitLt)]
