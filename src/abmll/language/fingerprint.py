"""What tells a base model's weights from others: a hash of all of them, and the shorter one of earlier versions."""

import hashlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel

from abmll.common.documents import read_json, write_document
from abmll.common.errors import AbmllError
from abmll.common.files import cache_dir
from abmll.language import quantized

PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)  # in which codes of quantised weights lie
AT_ONCE = 1 << 24  # numbers; a copy of them in bfloat16 is all the memory that hashing takes
WORTH_KEEPING = 1 << 26  # numbers; fewer are hashed in the tenth of a second
FILES = ("*.safetensors", "*.bin", "*.json")
LIBRARIES = ("torch", "transformers", "bitsandbytes", "torchao")  # which decide what lies in memory
SAMPLES = 16


def fingerprint(model: PreTrainedModel) -> str:
    """``sha256:`` and a hash of the architecture and of every number of every weight, the same for fp32 and bf16.

    Of a quantised weight its parts are hashed. Names and order of the weights play no part: they differ between
    versions of transformers.
    """
    return "sha256:" + _hashed(model, [_digest(part, _all_of(part)) for part in _parts_of(model)])


def sampled_fingerprint(model: PreTrainedModel) -> str:
    """As ``fingerprint``, of 16 numbers out of every weight: what version 0.2.0 wrote, and what caches are named by."""
    return _hashed(model, [_digest(part, [_sample(part)]) for part in _parts_of(model)])


def kept_fingerprint(model: PreTrainedModel, source: str | Path, quantization: str | None = None) -> str:
    """``fingerprint`` of a model as it was loaded from ``source``, a folder or a name in the hub's cache.

    That of a large model is kept in the user's cache. It is hashed again once one of the files has another size or
    time of change, for another precision or device, and with other versions of the libraries that loaded it.
    """
    files = _files(source)
    if not files or sum(part.numel() for part in _parts_of(model)) < WORTH_KEEPING:
        return fingerprint(model)
    where = (str(model.dtype), model.device.type, quantization, *map(_version, LIBRARIES))
    key = hashlib.sha256(repr((sampled_fingerprint(model), where, files)).encode()).hexdigest()
    path = cache_dir() / "fingerprints" / f"{key[:32]}.json"
    with suppress(AbmllError):  # none yet, or a damaged one
        return read_json(path, "fingerprint", "delete it")["base_fingerprint"]
    found = fingerprint(model)
    with suppress(AbmllError):  # a cache that takes nothing costs the next load its time
        write_document(path, "fingerprint", {"base_fingerprint": found})
    return found


def _files(source: str | Path) -> list[tuple[str, int, int]]:
    """The files that a model is loaded from: path behind all links, size, time of change."""
    folder = Path(source)
    if not folder.is_dir():
        cached = try_to_load_from_cache(str(source), "config.json")
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    paths = sorted(path.resolve() for pattern in FILES for path in folder.glob(pattern) if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _parts_of(model: PreTrainedModel) -> list[Tensor]:
    """The plain tensors that the weights consist of. Unpacked buffers are left out: they follow from the config."""
    packed = [buffer for buffer in model.buffers() if buffer.dtype in PACKED]
    weights = [*model.parameters(), *packed, *quantized.side_tensors(model)]
    return [part for weight in weights for part in _parts(weight)]


def _parts(weight: Tensor) -> list[Tensor]:
    """The plain tensors that a weight consists of: those inside of a subclass, such as codes and scales."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    return [weight] if flatten is None else [part for name in flatten()[0] for part in _parts(getattr(weight, name))]


def _hashed(model: PreTrainedModel, digests: list[bytes]) -> str:
    config = model.config.get_text_config()
    shape = (config.model_type, config.vocab_size, config.hidden_size, config.num_hidden_layers)
    return hashlib.sha256(repr(shape).encode() + b"".join(sorted(digests))).hexdigest()


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]


def _all_of(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.detach().flatten().split(AT_ONCE)


def _digest(weight: Tensor, pieces: list[Tensor] | tuple[Tensor, ...]) -> bytes:
    """A hash of a tensor's shape and of numbers of it: as bfloat16, or the integers that they are."""
    found = hashlib.sha256(repr(tuple(weight.shape)).encode())
    for piece in pieces:
        if piece.is_floating_point():
            piece = piece.to(torch.bfloat16).view(torch.int16)
        found.update(piece.contiguous().cpu().numpy().data)
    return found.digest()
