"""A model's shape: read off the model itself on torch's meta device, where its weights take no memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from abmll.common.errors import ConfigError, nearest
from abmll.language.targets import blocks_path, find_targets

# Public facts: the config.json of each model, as far as it determines sizes.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "qwen2-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "llama3-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}

# What transformers raises where a configuration is none, or its numbers do not go together.
MALFORMED = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError)

# The linear layers of a block in the order in which a token meets them; those of one stage share their input.
STAGES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}
QKV, OUT, GATE_UP = range(3)
NORMS = {"input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder block; ``stage`` says which input it reads (see ``STAGES``)."""

    stage: int
    d_out: int
    d_in: int
    adapted: bool


@dataclass(frozen=True)
class Block:
    """A decoder block; ``above``: a lower block is adapted, so that a gradient leaves through this one's input."""

    linears: Mapping[str, Linear]
    above: bool

    def needs_input(self, stage: int) -> bool:
        """Whether the input of a stage's linear layers requires a gradient: something before it is adapted."""
        return self.above or any(linear.adapted and linear.stage < stage for linear in self.linears.values())

    def needs_output(self, name: str) -> bool:
        """Whether the output of a linear layer requires a gradient."""
        return self.linears[name].adapted or self.needs_input(self.linears[name].stage)

    @property
    def adapted(self) -> list[Linear]:
        """The linear layers with an adapter."""
        return [linear for linear in self.linears.values() if linear.adapted]


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model with gated blocks, and which of its linear layers are adapted."""

    name: str
    parameters: int  # of the whole model, tied weights once
    hidden: int
    heads: int
    head_dim: int
    intermediate: int
    vocab: int
    blocks: tuple[Block, ...]

    @property
    def width(self) -> int:
        """Channels of the queries of all heads together."""
        return self.heads * self.head_dim

    @property
    def adapted(self) -> list[Linear]:
        """The adapted linear layers of all blocks."""
        return [linear for block in self.blocks for linear in block.adapted]

    @property
    def read_back(self) -> list[Block]:
        """The blocks that a gradient runs through: from the lowest adapted one on."""
        return [block for block in self.blocks if block.above or block.adapted]


def load_shape(name: str, target_modules: tuple[str, ...], layers_to_transform: str | None) -> Shape:
    """The shape of a built-in model (see ``SHAPES``), or of a config.json or a folder that has one.

    Raises ``ConfigError`` for an unknown name, a file that is no model's configuration, an architecture whose blocks
    are not counted here, and adapter settings that fit no layer.
    """
    model = meta_model(_config(name), name)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    _refuse_other_blocks(model, name)
    targets = find_targets(model, target_modules, layers_to_transform)
    return Shape(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=config.hidden_size,
        heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        blocks=_blocks(model, {target.name for target in targets}),
    )


def meta_model(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model of a configuration with weights that have a shape and no memory."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except MALFORMED as error:
        raise ConfigError(f"model_config: {name}: no causal language model has this shape: {_line(error)}") from error


def _config(name: str) -> PretrainedConfig:
    """The configuration of a built-in name, of a JSON file, or of a folder with a config.json."""
    if name in SHAPES:
        sizes = dict(SHAPES[name])
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
        if {full.rsplit(".", 1)[-1] for full in linears} != STAGES.keys() or parts - linears != NORMS:
            raise ConfigError(
                f"model_config: {name}: blocks of {model.config.model_type} are not counted; "
                "known are those with two norms, grouped attention and a gated MLP, such as Llama, Mistral and Qwen2"
            )


def _blocks(model: PreTrainedModel, adapted: set[str]) -> tuple[Block, ...]:
    """The model's decoder blocks; ``adapted`` are the names of the layers with an adapter."""
    blocks: list[Block] = []
    linears: dict[int, dict[str, Linear]] = {}
    for target in find_targets(model, ("all-linear",), None):
        short = target.name.rsplit(".", 1)[-1]
        own = Linear(STAGES[short], target.d_out, target.d_in, target.name in adapted)
        linears.setdefault(target.block, {})[short] = own
    for index in sorted(linears):
        blocks.append(Block(linears[index], above=any(lower.above or lower.adapted for lower in blocks)))
    return tuple(blocks)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
