"""The fingerprint of a base model: of all its weights, in any precision, and that of earlier versions beside it."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from abmll.language import fingerprint as module
from abmll.language.base import is_plain
from abmll.language.fingerprint import fingerprint, in_any_precision, kept_fingerprint, sampled_fingerprint
from tests.language.folders import WEIGHTS, alter, flip_bit, load


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_the_fingerprint_is_that_of_the_weights_in_any_precision(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    halved, whole = (load(family_folder(family), dtype) for dtype in ("bf16", "fp32"))
    assert in_any_precision(whole.fingerprint) == halved.fingerprint != whole.fingerprint
    assert halved.is_known_by(whole.fingerprint)
    assert whole.is_known_by(halved.fingerprint)


def test_families_have_different_fingerprints(family_folder: Callable[[str], Path]) -> None:
    assert len({load(family_folder(family)).fingerprint for family in ("llama", "qwen2", "gpt2", "gemma")}) == 4


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_layer_learned_anew_changes_the_fingerprint(name: str, folder: Path) -> None:
    before = load(folder).fingerprint
    alter(folder, lambda weights: weights[name].mul_(1.05))
    assert load(folder).fingerprint != before


def test_the_samples_of_plain_weights_are_those_of_every_version() -> None:
    model: Any = nn.Linear(3, 40)
    model.config = LlamaConfig()
    for parameter in model.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) / 7
    model.register_buffer("mask", torch.ones(4, dtype=torch.bool))
    model.register_buffer("frequencies", torch.ones(4), persistent=False)
    assert sampled_fingerprint(model).startswith("147e9a9f79201415")
    # Here without the library: the 120 and 40 numbers k / 7 as bfloat16, rounded to even.
    digests: dict[str, list[bytes]] = {"rounded": [], "exact": []}
    for shape, size in (((40, 3), 120), ((40,), 40)):
        bits = (np.arange(size, dtype=np.float32) / np.float32(7)).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        for kind, numbers in (("rounded", rounded), ("exact", bits)):
            digests[kind].append(hashlib.sha256(repr(shape).encode() + numbers.tobytes()).digest())
    expected = [
        hashlib.sha256(repr(("llama", 32000, 4096, 32)).encode() + b"".join(sorted(found))).hexdigest()
        for found in digests.values()
    ]
    assert fingerprint(model) == "sha256:" + "+".join(expected)
    model.bfloat16()
    assert fingerprint(model) == fingerprint(model.float()) == f"sha256:{expected[0]}"  # fp32 holds no more then


class Int8(torch.Tensor):
    """A weight of codes and scales that knows no operation but ``detach``, as quantisation libraries have them."""

    codes: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scales: torch.Tensor) -> "Int8":
        made: Any = torch.Tensor._make_wrapper_subclass
        return made(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        self.codes, self.scales = codes, scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Int8":
        if func is torch.ops.aten.detach.default:
            return Int8(args[0].codes, args[0].scales)
        raise NotImplementedError(f"{func}")


@pytest.mark.parametrize("kind", ["subclass", "parameter", "buffer"])
def test_quantised_weights_count_in_the_fingerprint(kind: str, tiny_llama: Path) -> None:
    base = load(tiny_llama)
    layer: Any = base.model.get_submodule("model.layers.0.self_attn.q_proj")

    def quantised(value: int, scale: float) -> str:
        codes, scales = torch.full((32, 32), value, dtype=torch.int8), torch.full((32,), scale)
        if kind == "subclass":
            layer.weight = nn.Parameter(Int8(codes, scales), requires_grad=False)
            with pytest.raises(NotImplementedError, match=r"aten\.view"):
                layer.weight.flatten()
        elif kind == "parameter":
            layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (codes, scales))
        else:
            layer.register_buffer("codes", codes)
            layer.bias = nn.Parameter(scales, requires_grad=False)
        assert is_plain(layer.weight) == (kind == "buffer")
        return fingerprint(base.model)

    different = {base.fingerprint, quantised(3, 0.1), quantised(4, 0.1), quantised(4, 0.2)}
    assert len(different) == 4
    assert quantised(4, 0.2) in different


def test_a_single_number_counts(folder: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"][5, 7] += 1.0

    before = load(folder)
    alter(folder, change)
    after = load(folder)
    assert after.sampled_fingerprint == before.sampled_fingerprint
    assert not after.is_known_by(before.fingerprint)
    assert after.is_known_by(before.sampled_fingerprint)  # all that a folder of 0.2.0 knows


@pytest.mark.parametrize("bit", [0, 15, 16, 31])
def test_a_single_bit_counts(bit: int, folder: Path) -> None:
    before = load(folder)
    flip_bit(folder, bit)
    after = load(folder)
    assert after.sampled_fingerprint == before.sampled_fingerprint
    assert not after.is_known_by(before.fingerprint)
    assert load(folder, "bf16").is_known_by(before.fingerprint) == (bit < 15)  # there it is no change


def test_buffers_that_a_checkpoint_holds_count(tiny_llama: Path) -> None:
    model: Any = load(tiny_llama).model
    before = fingerprint(model)
    model.model.register_buffer("tables", torch.ones(3), persistent=False)
    assert fingerprint(model) == before
    model.model.register_buffer("biases", torch.ones(3))
    with_biases = fingerprint(model)
    model.model.biases[1] += 1
    assert len({before, with_biases, fingerprint(model)}) == 3


def test_large_weights_are_hashed_in_pieces(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load(tiny_llama)
    monkeypatch.setattr(module, "AT_ONCE", 100)
    assert fingerprint(base.model) == base.fingerprint


def test_a_large_model_is_hashed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    model, hashed = load(folder).model, []
    kept = tmp_path / "cache" / "fingerprints"
    assert not kept.exists()  # a small one is not kept
    monkeypatch.setattr(module, "WORTH_KEEPING", 1)
    monkeypatch.setattr(module, "fingerprint", lambda model: hashed.append(1) or fingerprint(model))
    expected = fingerprint(model)

    def found(quantization: str | None = None) -> int:
        """How often it was hashed for the right answer."""
        hashed.clear()
        assert kept_fingerprint(model, folder, quantization) == expected
        return len(hashed)

    assert (found(), found(), found()) == (1, 0, 0)
    assert found("load_in_4bit") == 1
    os.utime(folder / WEIGHTS, ns=(1, 1))
    assert (found(), found()) == (1, 0)
    if os.name == "posix":
        shutil.copyfile(folder / WEIGHTS, folder / "copy")
        os.replace(folder / "copy", folder / WEIGHTS)
        os.utime(folder / WEIGHTS, ns=(1, 1))  # the time of its bytes can be set back, and was
        assert (found(), found()) == (1, 0)
    for path in kept.iterdir():
        path.write_text(path.read_text().replace("sha256:", "sha256:0"))
    assert (found(), found()) == (1, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1  # pyright: ignore[reportCallIssue, reportIndexIssue]
    expected = fingerprint(model)
    assert found() == 1  # the samples say that it is another, although the files are the same


def test_a_cache_that_cannot_be_written_is_no_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_KEEPING", 1)
    base = load(folder)
    assert base.fingerprint == fingerprint(base.model)
