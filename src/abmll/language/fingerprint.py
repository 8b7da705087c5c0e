"""What tells a base model's weights from others: a hash of all of them, and the shorter one of earlier versions."""

import hashlib
from collections.abc import Iterable, Iterator
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
AT_ONCE = 1 << 24  # numbers; a copy of them is all the memory that hashing takes
WORTH_KEEPING = 1 << 24  # numbers; fewer are hashed in a quarter of a second
FILES = ("*.safetensors", "*.bin", "*.json")
LIBRARIES = ("torch", "transformers", "bitsandbytes", "torchao")  # which decide what lies in memory
SAMPLES = 16
EXACT = "+"  # what stands before the second hash


def fingerprint(model: PreTrainedModel) -> str:
    """``sha256:`` and a hash of the architecture and of every number of every weight, the same for fp32 and bf16.

    Where fp32 holds more than bf16 does, ``+`` and a hash of these weights as they are. Of a quantised weight its parts
    are hashed, as bf16 alone: with how many threads, and on what, it was quantised decides the last bits of its scales.
    Names and order of the weights play no part: they differ between versions of transformers.
    """
    buffers = _saved_buffers(model)
    found = "sha256:" + _hashed(model, [_digest(part, _rounded(part)) for part in [*_parts_of(model), *buffers]])
    finer = [weight for weight in [*model.parameters(), *buffers] if _is_finer(weight)]
    return f"{found}{EXACT}{_hashed(model, [_digest(weight, _all_of(weight)) for weight in finer])}" if finer else found


def in_any_precision(fingerprint: str) -> str:
    """The part of a fingerprint that the weights have in fp32 and in bf16."""
    return fingerprint.partition(EXACT)[0]


def may_be_same(one: str, other: str) -> bool:
    """Whether two fingerprints can be of the same weights; what bf16 lacks is compared where both have it."""
    are_whole = EXACT in one and EXACT in other
    return one == other if are_whole else in_any_precision(one) == in_any_precision(other)


def sampled_fingerprint(model: PreTrainedModel) -> str:
    """As the first hash, of 16 numbers out of every weight: what version 0.2.0 wrote."""
    return _hashed(model, [_digest(part, [_as_bf16(_sample(part))]) for part in _parts_of(model)])


def kept_fingerprint(model: PreTrainedModel, source: str | Path, quantization: str | None = None) -> str:
    """``fingerprint`` of a model as it was loaded from ``source``, a folder or a name in the hub's cache.

    That of a large model is kept in the user's cache. It is hashed again once one of the files has another size or
    another time of a change (of its bytes, or of what is known of it: the former can be set back), for another
    precision or device, and with other versions of the libraries that loaded it.
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


def _files(source: str | Path) -> list[tuple[str, int, int, int]]:
    """The files that a model is loaded from: path behind all links, size, times of change."""
    folder = Path(source)
    if not folder.is_dir():
        cached = try_to_load_from_cache(str(source), "config.json")
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    paths = sorted(path.resolve() for pattern in FILES for path in folder.glob(pattern) if path.is_file())
    known = [(str(path), path.stat()) for path in paths]
    return [(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns) for path, about in known]


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


def _saved_buffers(model: PreTrainedModel) -> list[Tensor]:
    """The buffers that a checkpoint holds as numbers, as the biases of some routers; others follow from the config."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and name not in module._non_persistent_buffers_set
    ]


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]


def _all_of(weight: Tensor) -> Iterator[Tensor]:
    yield from weight.detach().flatten().split(AT_ONCE)


def _rounded(weight: Tensor) -> Iterator[Tensor]:
    return map(_as_bf16, _all_of(weight))


def _as_bf16(numbers: Tensor) -> Tensor:
    """Numbers as bfloat16; integers as they are."""
    return numbers.to(torch.bfloat16) if numbers.is_floating_point() else numbers


def _is_finer(weight: Tensor) -> bool:
    """Whether a plain weight has numbers that are none of bfloat16, which has the first half of the bits of fp32."""
    if weight.dtype != torch.float32 or hasattr(weight, "__tensor_flatten__"):
        return False
    return any(bool((piece.view(torch.int32) & 0xFFFF).any()) for piece in _all_of(weight))


def _digest(weight: Tensor, pieces: Iterable[Tensor]) -> bytes:
    """A hash of a tensor's shape, and of the bits of what is taken of it."""
    found = hashlib.sha256(repr(tuple(weight.shape)).encode())
    for piece in pieces:
        bits = piece.contiguous().cpu()
        found.update((bits.view(torch.int16) if bits.dtype == torch.bfloat16 else bits).numpy().data)
    return found.digest()
