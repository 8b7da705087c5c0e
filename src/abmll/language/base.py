"""Loading a frozen causal language model: the embedded one, a folder, or a Hugging Face name."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from abmll.config import ModelConfig
from abmll.errors import CheckpointError, ConfigError
from abmll.language import embedded


@dataclass(frozen=True)
class Base:
    """A frozen model, its tokenizer, the name it was asked for by, and a fingerprint of its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str

    @property
    def context(self) -> int:
        """The longest sequence in tokens that every layer sees whole (a sliding attention window limits it too)."""
        config = self.model.config.get_text_config()
        limits = [config.max_position_embeddings]
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        if sliding and getattr(config, "sliding_window", None):
            limits.append(config.sliding_window)
        return min(limits)


def load_base(config: ModelConfig, announce: Callable[[str], None], quiet: bool = False) -> Base:
    """Load model and tokenizer for ``config``, frozen and in evaluation mode.

    Raises ``CheckpointError`` where the model is missing, cannot be reached or is damaged, ``ConfigError`` where it is
    no causal language model or the device does not exist.
    """
    device = resolve_device(config.device)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[resolve_dtype(config.dtype, device)]
    name = config.model
    source = embedded.embedded_model(announce, quiet=quiet) if name == embedded.NAME else name
    if _looks_like_path(name) and not Path(name).is_dir():
        raise CheckpointError(f"model: there is no folder {name}; give a folder, a Hugging Face name or smollm2-135m")
    # The eager attention's backward pass is the faster one on a CPU.
    attention = "eager" if device.type == "cpu" else "sdpa"
    was_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"model: cannot load {name}: {reason}") from error
    finally:
        if was_shown:
            transformers_logging.enable_progress_bar()
    model = model.to(device).eval().requires_grad_(False)
    return Base(model, tokenizer, name, fingerprint(model))


def resolve_device(name: str) -> torch.device:
    """The device named, or for ``auto`` the first GPU, else the CPU. Raises ``ConfigError`` for one that is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: '{name}' is not available here; use cpu, cuda, mps or auto") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> str:
    """``bf16`` or ``fp32``; ``auto`` takes bf16 only where it is in hardware (elsewhere it is many times slower)."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of the architecture and of a thousand weights, the same for every dtype the model is loaded in."""
    config = model.config.get_text_config()
    shape = (config.model_type, config.vocab_size, config.hidden_size, config.num_hidden_layers)
    digest = hashlib.sha256(repr(shape).encode())
    for tensor in _weights_to_probe(model):
        flat = tensor.detach().flatten()
        picked = flat[:: max(1, flat.numel() // 500)][:500]
        digest.update(picked.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()


def _weights_to_probe(model: PreTrainedModel) -> list[Tensor]:
    """The embedding and the largest floating-point weight of the last decoder block."""
    embedding = model.get_input_embeddings().weight
    blocks = [p for p in model.base_model.parameters() if p.is_floating_point() and p.ndim == 2]
    return [embedding, blocks[-1]]  # pyright: ignore[reportReturnType]


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
