"""A model's shape: read off the model itself on torch's meta device, where its weights take no memory."""

from collections.abc import Mapping
from dataclasses import dataclass
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

    @property
    def needs_gradient(self) -> bool:
        """Whether a gradient runs through it: it or a lower block is adapted."""
        return self.above or bool(self.adapted)


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
        return [block for block in self.blocks if block.needs_gradient]


def load_shape(name: str, target_modules: tuple[str, ...], layers_to_transform: str | None) -> Shape:
    """The shape of a built-in model (see ``SHAPES``), or of a config.json or a folder that has one.

    Raises ``ConfigError`` for an unknown name, a file that is no model's configuration, an architecture whose blocks
    are not counted here, and adapter settings that fit no layer.
    """
    model = meta_model(_config(name), name)
    _refuse_other_blocks(model, name)
    config = model.config.get_text_config()
    adapted = {target.name for target in find_targets(model, target_modules, layers_to_transform)}
    return Shape(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        blocks=_blocks(model, adapted),
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
        if {full.rsplit(".", 1)[-1] for full in linears} != STAGES.keys() or parts - linears != NORMS:
            raise ConfigError(
                f"model_config: {name}: blocks of {model.config.model_type} are not counted; "
                "known are those with two norms, grouped attention and a gated MLP, such as Llama, Mistral and Qwen2"
            )


def _blocks(model: PreTrainedModel, adapted: set[str]) -> tuple[Block, ...]:
    """The model's decoder blocks; ``adapted`` are the names of the layers with an adapter."""
    linears: dict[int, dict[str, Linear]] = {}
    for target in find_targets(model, ("all-linear",), None):
        short = target.name.rsplit(".", 1)[-1]
        own = Linear(STAGES[short], target.d_out, target.d_in, target.name in adapted)
        linears.setdefault(target.block, {})[short] = own
    blocks: list[Block] = []
    for _, own_linears in sorted(linears.items()):
        blocks.append(Block(own_linears, above=bool(blocks) and blocks[-1].needs_gradient))
    return tuple(blocks)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
