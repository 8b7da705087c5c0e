"""The model of a trial run: the embedded model's family and tokenizer, and so few weights that a step takes no time."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from abmll.language.embedded import embedded_model
from benchmarks.bench import announce

# Random weights. More layers than the cells' "top-12", so that there are lower blocks.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 14, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 16}


def small_model(folder: Path, **sizes: int) -> str:
    """The model's folder, made where it is not there yet; ``sizes`` go before ``SIZES``."""
    if not (folder / "model.safetensors").exists():
        source = embedded_model(announce)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, **SIZES | sizes)).save_pretrained(folder)
    return str(folder)
