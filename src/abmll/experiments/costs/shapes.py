"""A model's shape: read off the model itself on torch's meta device, where its weights take no memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from abmll.common.errors import ConfigError, nearest
from abmll.language.targets import blocks_path, find_targets

SIZES = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "tie_word_embeddings"),
)
# Public facts: the config.json of each model, as far as it determines sizes.
SHAPES: Mapping[str, tuple[Any, ...]] = {
    "smollm2-135m": ("llama", 576, 1536, 30, 9, 3, 49152, True),
    "llama3-8b": ("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "qwen2-7b": ("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    "llama3-70b": ("llama", 8192, 28672, 80, 64, 8, 128256, False),
}

# The models of the paper as the hub names them.
HUB_NAMES = {"meta-llama/Meta-Llama-3-8B-Instruct": "llama3-8b", "Qwen/Qwen2-7B-Instruct": "qwen2-7b"}

# What transformers raises where a configuration is none, or its numbers do not go together.
MALFORMED = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError)

# The linear layers of a block in the order in which a token meets them; those of one stage share their input.
STAGES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}
OUT, GATE_UP = STAGES["o_proj"], STAGES["gate_proj"]
NORMS = {"input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder block; ``stage`` says which input it reads (see ``STAGES``)."""

    stage: int
    d_out: int
    d_in: int
    adapted: bool
    needs_input: bool  # whether its input requires a gradient: something before it is adapted

    @property
    def needs_output(self) -> bool:
        """Whether its output requires a gradient."""
        return self.adapted or self.needs_input


Block = Mapping[str, Linear]  # the linear layers of a decoder block, by the last part of their names


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model with gated blocks, and which of its linear layers are adapted."""

    name: str
    parameters: int  # of the whole model, tied weights once
    hidden: int
    heads: int
    width: int  # channels of the queries of all heads together
    intermediate: int
    vocab: int
    blocks: tuple[Block, ...]

    @property
    def linears(self) -> list[Linear]:
        """The linear layers of all blocks."""
        return [linear for block in self.blocks for linear in block.values()]

    @property
    def adapted(self) -> list[Linear]:
        """Those with an adapter."""
        return [linear for linear in self.linears if linear.adapted]

    @property
    def read_back(self) -> list[Block]:
        """The blocks that a gradient runs through: from the lowest adapted one on."""
        return [block for block in self.blocks if any(linear.needs_output for linear in block.values())]


def adapted(block: Block) -> list[Linear]:
    """The block's linear layers with an adapter."""
    return [linear for linear in block.values() if linear.adapted]


def load_shape(name: str, target_modules: tuple[str, ...], layers_to_transform: str | None) -> Shape:
    """The shape of a built-in model (see ``SHAPES``), or of a config.json or a folder that has one.

    Raises ``ConfigError`` for an unknown name, a file that is no model's configuration, an architecture whose blocks
    are not counted here, and adapter settings that fit no layer.
    """
    model = meta_model(config_of(name), name)
    _refuse_other_blocks(model, name)
    config = model.config.get_text_config()
    blocks = _blocks(model, {target.name for target in find_targets(model, target_modules, layers_to_transform)})
    return Shape(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        width=blocks[0]["q_proj"].d_out,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        blocks=blocks,
    )


def meta_model(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model of a configuration with weights that have a shape and no memory."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except MALFORMED as error:
        raise ConfigError(f"model_config: {name}: no causal language model has this shape: {_line(error)}") from error


def config_of(name: str) -> PretrainedConfig:
    """The configuration of a built-in name, of a JSON file, or of a folder with a config.json.

    Raises ``ConfigError`` for an unknown name, and for a file that is no model's configuration.
    """
    name = HUB_NAMES.get(name, name)
    if name in SHAPES:
        sizes = dict(zip(SIZES, SHAPES[name], strict=True))
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    path = Path(name).expanduser()
    if not path.exists():
        hint = nearest(name, SHAPES) or f" Use {', '.join(SHAPES)}, a config.json, or a folder with one."
        raise ConfigError(f"model_config: '{name}' is no known shape and no file.{hint}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model_config: {path} has no config.json; give a model's folder")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except MALFORMED as error:
        raise ConfigError(f"model_config: {path}: is no model's configuration: {_line(error)}") from error


def _refuse_other_blocks(model: PreTrainedModel, name: str) -> None:
    """Raise ``ConfigError`` where a decoder block is built of other parts than the counts know."""
    for block in model.get_submodule(blocks_path(model)).children():
        parts = {full for full, part in block.named_modules() if list(part.parameters(recurse=False))}
        linears = {full for full in parts if full.endswith("_proj")}
        if {_last(full) for full in linears} != STAGES.keys() or parts - linears != NORMS:
            raise ConfigError(
                f"model_config: {name}: blocks of {model.config.model_type} are not counted; "
                "known are those with two norms, grouped attention and a gated MLP, such as Llama, Mistral and Qwen2"
            )


def _blocks(model: PreTrainedModel, with_adapter: set[str]) -> tuple[Block, ...]:
    """The model's decoder blocks; ``with_adapter`` names the layers that have one."""
    blocks: list[Block] = []
    for _, targets in groupby(find_targets(model, ("all-linear",), None), key=lambda target: target.block):
        layers = [(target, STAGES[_last(target.name)]) for target in targets]
        # A gradient reaches a layer's input from the lowest adapted stage of the block on, or from a block below.
        first = min((stage for target, stage in layers if target.name in with_adapter), default=len(STAGES))
        above = bool(blocks) and any(linear.needs_output for linear in blocks[-1].values())
        blocks.append(
            {
                _last(target.name): Linear(stage, *target[2:], target.name in with_adapter, above or stage > first)
                for target, stage in layers
            }
        )
    return tuple(blocks)


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
