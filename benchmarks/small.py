"""Models of random weights: that of a trial run, in which a step takes no time, and those of a given shape."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from abmll.language.embedded import embedded_model
from benchmarks.bench import announce

# Random weights. More layers than the cells' "top-12", so that there are lower blocks.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 14, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 16}


def small_model(folder: Path, **sizes: int) -> str:
    """The embedded model with ``sizes``, or else ``SIZES``."""
    return random_model(folder, AutoConfig.from_pretrained(embedded_model(announce), **SIZES | sizes))


def random_model(folder: Path, config: PretrainedConfig, dtype: torch.dtype | None = None) -> str:
    """The folder of a model of random weights with the embedded one's tokenizer, made where it is not there yet."""
    if not (folder / "model.safetensors").exists():
        AutoTokenizer.from_pretrained(embedded_model(announce)).save_pretrained(folder)
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, **({} if dtype is None else {"dtype": dtype}))
        made.save_pretrained(folder, max_shard_size="100GB")  # one file
    return str(folder)
