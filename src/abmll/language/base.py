"""Loading a frozen causal language model: the embedded one, a folder, or a Hugging Face name."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from abmll.common.config import ModelConfig
from abmll.common.errors import CheckpointError, ConfigError, nearest
from abmll.language import embedded, placement, quantized, sharding
from abmll.language.fingerprint import kept_fingerprint, may_be_same, sampled_fingerprint
from abmll.language.hub_model import only_cached
from abmll.language.packing import PREFIX, remove_packing

PLAIN = (torch.float32, torch.bfloat16, torch.float16)


class Wrapper(nn.Module):
    """A layer of the frozen model inside one of our own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class BlockWrapper(Wrapper):
    """A decoder block in the place of another, which has its attributes too."""

    def __getattr__(self, name: str) -> Any:
        """The block's own attributes: some models ask a block which kind of attention mask it takes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@dataclass(frozen=True)
class Base:
    """A frozen model, its tokenizer, the name it was asked for by, and the fingerprint of its weights.

    ``quantization`` is the setting that quantised it while it was loaded (``load_in_4bit``), if one did.
    ``sampled_fingerprint`` is what folders of 0.2.0 know the weights by.
    ``shards`` is there where several processes keep a share each of the weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    quantization: str | None = None
    sampled_fingerprint: str = ""
    shards: sharding.Shards | None = None

    def settle(self) -> None:
        """Call it before processes that share this base meet in any other way, and at their end.

        Here one that has nothing more to compute helps the others, until none of them computes any more.
        """
        if self.shards is not None:
            self.shards.settle()

    def is_known_by(self, fingerprint: str) -> bool:
        """Whether a saved folder that names its base by that fingerprint may belong to these weights."""
        return fingerprint == self.sampled_fingerprint or may_be_same(fingerprint, self.fingerprint)

    @property
    def context(self) -> int:
        """The longest sequence in tokens that every layer sees whole (a sliding attention window limits it too).

        Raises ``ConfigError`` where the model's configuration names no such length: it has no positions to count.
        """
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        if not isinstance(longest, int):
            raise ConfigError(
                f"model: {self.name}: {type(self.model).__name__} has no max_position_embeddings; "
                "its architecture is not supported"
            )
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        window = getattr(config, "sliding_window", None)
        return min(longest, window) if slides and window else longest

    def twin(self) -> "Base":
        """The very same weights under new modules without a scorer's wrappers, for other adapters beside the first.

        Raises ``ConfigError`` for a base whose weights are shared out over processes: FSDP2 knows modules, not weights.
        """
        if self.shards is not None:
            raise ConfigError("shard_base: a second adapter beside the first needs the whole base; leave it out")
        tensors = [*self.model.parameters(), *self.model.buffers(), *quantized.side_tensors(self.model)]
        tensors += placement.kept_elsewhere(self.model)
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
        if (model.config._attn_implementation or "").startswith(PREFIX):
            remove_packing(model)
        for name, module in list(model.named_modules()):
            if isinstance(module, Wrapper):  # ours are never nested
                model.set_submodule(name, module.inner)
        return replace(self, model=model)


def load_base(config: ModelConfig, announce: Callable[[str], None], quiet: bool = False) -> Base:
    """Load model and tokenizer for ``config``, frozen and in evaluation mode.

    Raises ``CheckpointError`` where the model is missing, cannot be reached, is damaged or is no causal language
    model, ``ConfigError`` where the device or the precision does not exist, where the library that quantises is not
    installed, and for a model that is quantised already.
    """
    device = resolve_device(config.device)
    mesh = sharding.open_mesh(device) if config.shard_base else None
    if config.device_map is not None:
        placement.refuse_unplaceable(device)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[resolve_dtype(config.dtype, device)]
    name = config.model
    source = embedded.embedded_model(announce, quiet=quiet) if name == embedded.NAME else _located(name)
    cached = not Path(source).is_dir() and only_cached(name, announce)
    # The eager attention's backward pass is the faster one on a CPU.
    attention = "eager" if device.type == "cpu" else "sdpa"
    try:
        with no_progress_bars():
            if sharding.is_reader(mesh):
                extra = quantized.loading(config.quantization, source, name, dtype, device, cached, config.device_map)
                model = _read_weights(source, name, dtype, attention, cached, extra)
                if not extra and mesh is None and config.device_map is None:
                    model.to(device)  # pyright: ignore[reportArgumentType]
            else:
                model = sharding.skeleton(source, dtype, attention, cached)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=cached)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(": ")
        where = "" if Path(source).is_dir() else " (there is no such folder)"
        raise CheckpointError(f"model: cannot load {name}{where}: {reason}") from error
    model.eval().requires_grad_(False)
    quantized.settle(model)
    whole, sampled = sharding.of_reader(
        mesh, lambda: [kept_fingerprint(model, source, config.quantization), sampled_fingerprint(model)]
    )
    shards = None if mesh is None else sharding.share_out(model, mesh, device)
    if config.device_map is not None and config.quantization is None:
        placement.spread(model, placement.device_map_of(model, config.device_map))
    return Base(model, tokenizer, name, whole, config.quantization, sampled, shards)


def _read_weights(
    source: Path | str, name: str, dtype: torch.dtype, attention: str, cached: bool, extra: dict[str, Any]
) -> PreTrainedModel:
    """The model in ``source``, called ``name``. Raises ``CheckpointError`` where a weight is missing."""
    result: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=False,
        output_loading_info=True,
        local_files_only=cached,
        **extra,
    )
    model, loaded = result
    if loaded["missing_keys"]:  # transformers has filled them with random numbers
        raise CheckpointError(f"model: {name} lacks weights: {', '.join(sorted(loaded['missing_keys'])[:3])}")
    return model


def resolve_device(name: str) -> torch.device:
    """The device named, or for ``auto`` the first GPU, else the CPU. Raises ``ConfigError`` for one that is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # depends on how torch was built
        raise ConfigError(f"device: '{name}' is not available here; use cpu, cuda, mps or auto") from error
    number, gpus = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if device.type == "cuda" and device.index is None and number >= gpus:
        raise ConfigError(f"device: this computer has {gpus} GPUs; start as many processes, or use --device cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> str:
    """``bf16`` or ``fp32``; ``auto`` takes bf16 only where it is in hardware (elsewhere it is many times slower)."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # An older torch does not know what the processor has.
    able = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def is_plain(weight: object) -> TypeGuard[Tensor]:
    """Whether what a layer has for a weight is a tensor of fp32, bf16 or fp16 numbers, and not quantised."""
    return isinstance(weight, Tensor) and weight.dtype in PLAIN and not hasattr(weight, "__tensor_flatten__")


def _located(name: str) -> str:
    """A folder as transformers finds it (it does not know ``~``), a Hugging Face name as it is.

    Raises ``CheckpointError`` for what can only be a folder and is none, or nearly is the embedded model's name.
    """
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return str(folder)
    except OSError as error:  # such as a name that is too long
        raise CheckpointError(f"model: {name[:100]}: {error.strerror}; give the name of a folder or a model") from error
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"model: there is no folder {name}; give a folder, a Hugging Face name or smollm2-135m")
    if "/" not in name and (hint := nearest(name.lower(), [embedded.NAME])):
        raise CheckpointError(f"model: there is no folder or model {name}.{hint}")
    return name


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers shows no progress bars of its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
