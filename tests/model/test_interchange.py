"""The exported mean against other programs: PEFT's own LoRA, and transformers with merged weights."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll import AbmllModel
from abmll.common.errors import AbmllError, ConfigError
from abmll.language.adapter import Adapter
from abmll.language.encoding import Encoded
from abmll.language.scorer import OptionScorer
from abmll.model.interchange import export_merged, export_peft

# PEFT 0.21 asks transformers 5.23 for an attribute under its old name; any other warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FAMILIES = ["llama", "qwen2", "gpt2", "gemma"]
NAMED = {"gpt2": ["c_attn", "c_proj"]}
EXAMPLES = [
    Encoded((7, 100, 30, 41, 5), ((60, 61, 62), (63,)), 0),
    Encoded((9, 8), ((70, 71), (72, 73, 74, 75), (76, 7)), 2),
]


def learned(
    folder: Path, layers: str | None, modules: list[str], dtype: str = "fp32", space: str = "weight"
) -> AbmllModel:
    """A model whose theta has a mean far from zero and a standard deviation that must not matter."""
    model = AbmllModel.from_base(
        str(folder),
        r=3,
        lora_alpha=5.0,
        target_modules=modules,
        layers_to_transform=layers,
        space=space,
        dtype=dtype,
        device="cpu",
    )
    generator = torch.Generator().manual_seed(4)
    for tensor in model.theta.mean_tensors():
        tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
    return model


def sequences() -> list[tuple[int, ...]]:
    return [example.prompt + option for example in EXAMPLES for option in example.options]


@torch.no_grad()
def logits(model: Any) -> list[Tensor]:
    """A causal language model's logits on every prompt followed by every option."""
    return [model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences()]


def our_logits(scorer: OptionScorer, phi: Adapter) -> list[Tensor]:
    """The same from our wrapped model, at the mean."""
    with scorer.wiring.use(phi, scorer.batch([EXAMPLES[0]])):
        return logits(scorer.base.model)


def option_scores(all_logits: list[Tensor]) -> list[float]:
    """Log-probability of each option after its prompt."""
    pairs = [(example.prompt, option) for example in EXAMPLES for option in example.options]
    results = []
    for (prompt, option), values in zip(pairs, all_logits, strict=True):
        predicted = torch.log_softmax(values, -1)[len(prompt) - 1 : -1]
        results.append(float(predicted.gather(1, torch.tensor(option)[:, None]).sum()))
    return results


def assert_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture(params=[(None, False), ("1", False), ("0", True), (None, True)], ids=str)
def where(request: pytest.FixtureRequest) -> tuple[str | None, bool]:
    """Layers to adapt, and whether all their linear layers are."""
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_s_own_lora_gives_our_logits_at_the_mean(
    family: str,
    where: tuple[str | None, bool],
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    layers, everything = where
    modules = ["all-linear"] if everything else NAMED.get(family, ["q_proj", "v_proj"])
    model = learned(family_folder(family), layers, modules)
    export_peft(model.scorer, model.theta, tmp_path / "adapter")
    ours = our_logits(model.scorer, model.theta)

    bare = AutoModelForCausalLM.from_pretrained(family_folder(family), dtype=torch.float32)
    without = logits(bare)
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # and a warning of Python's is an error anyway
        peft = PeftModel.from_pretrained(bare, str(tmp_path / "adapter"))
    assert caplog.records == []
    assert_close(logits(peft), ours)
    assert max(float((a - b).abs().max()) for a, b in zip(without, ours, strict=True)) > 0.05
    # Exactly the layers that we adapt carry a LoRA of PEFT's, and its keys are exactly ours.
    lora = {name for name, _ in bare.named_modules() if name.endswith(".lora_A.default")}
    assert lora == {f"{name}.lora_A.default" for name in model.scorer.shapes}
    result = set_peft_model_state_dict(peft, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if "lora" in key]
    # The engine's option scores are those of PEFT's model too.
    scores = model.scorer.scores(model.scorer.batch(EXAMPLES), model.theta).options
    lengths = [len(option) for example in EXAMPLES for option in example.options]
    sums = [float(score) for score in scores.flatten() if torch.isfinite(score)]
    if model.scorer.prompt.length_normalize:
        sums = [score * length for score, length in zip(sums, lengths, strict=True)]
    assert sums == pytest.approx(option_scores(logits(peft)), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_our_logits_at_the_mean(
    family: str, where: tuple[str | None, bool], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    layers, everything = where
    modules = ["all-linear"] if everything else NAMED.get(family, ["q_proj", "v_proj"])
    model = learned(family_folder(family), layers, modules)
    before = {name: tensor.clone() for name, tensor in model.scorer.base.model.state_dict().items()}
    export_merged(model.scorer, model.theta, tmp_path / "merged")
    after = model.scorer.base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    result: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    reloaded, report = result
    assert not any(report.values())
    assert_close(logits(reloaded), our_logits(model.scorer, model.theta))
    # Names and ties are those of the base model.
    folders = tmp_path / "merged", family_folder(family)
    saved, original = (load_file(folder / "model.safetensors") for folder in folders)
    assert {name: tensor.shape for name, tensor in saved.items()} == {n: t.shape for n, t in original.items()}
    changed = {name for name in saved if not torch.equal(saved[name], original[name])}
    assert changed == {f"{name}.weight" for name in model.scorer.shapes}
    tied = reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight
    assert tied is (family != "qwen2")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_everything_in_an_export_may_be_read_by_whom_new_files_may(tiny_llama: Path, tmp_path: Path) -> None:
    model = AbmllModel.from_base(str(tiny_llama), target_modules=["q_proj"], dtype="fp32", device="cpu")
    (tmp_path / "new").touch()
    export_merged(model.scorer, model.theta, tmp_path / "merged")
    export_peft(model.scorer, model.theta, tmp_path / "peft")
    modes = {path.stat().st_mode for name in ("merged", "peft") for path in (tmp_path / name).iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_the_merged_folder_is_a_base_model_of_our_own_with_its_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    model = learned(tiny_llama, "1", ["q_proj"])
    export_merged(model.scorer, model.theta, tmp_path / "merged")
    again = AbmllModel.from_base(str(tmp_path / "merged"), target_modules=["q_proj"], dtype="fp32", device="cpu")
    assert again.scorer.base.fingerprint != model.scorer.base.fingerprint
    text = "a text of 35 tokens, one for a byte"
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "merged")(text)["input_ids"]
        == (AutoTokenizer.from_pretrained(tiny_llama)(text)["input_ids"])
    )


def test_a_bf16_base_is_merged_in_bf16_with_one_rounding(tiny_llama: Path, tmp_path: Path) -> None:
    model = learned(tiny_llama, "1", ["q_proj"], dtype="bf16")
    export_merged(model.scorer, model.theta, tmp_path / "merged")
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    layer = model.theta.by_layer()[name]
    base = load_file(tiny_llama / "model.safetensors")[f"{name}.weight"].bfloat16().float()
    expected = (base + 5.0 / 3 * layer.mean_B @ layer.mean_A).bfloat16()
    torch.testing.assert_close(saved[f"{name}.weight"], expected, rtol=0, atol=0)
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_the_mean_of_output_space_is_plain_lora_too(tiny_llama: Path, tmp_path: Path) -> None:
    model = learned(tiny_llama, "1", ["q_proj", "v_proj"], space="output")
    export_peft(model.scorer, model.theta, tmp_path / "adapter")
    bare = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    peft = PeftModel.from_pretrained(bare, str(tmp_path / "adapter"))
    assert_close(logits(peft), our_logits(model.scorer, model.theta))


def test_the_adapter_s_settings_are_those_of_plain_lora(tiny_llama: Path, tmp_path: Path) -> None:
    model = learned(tiny_llama, "1", ["q_proj", "v_proj"])
    export_peft(model.scorer, model.theta, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 3
    assert settings["lora_alpha"] == 5.0
    assert settings["bias"] == "none"
    assert settings["base_model_name_or_path"] == tiny_llama.name
    assert settings["target_modules"] == [f"model.layers.1.self_attn.{end}" for end in ("q_proj", "v_proj")]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    layer = model.theta.by_layer()["model.layers.1.self_attn.v_proj"]
    prefix = "base_model.model.model.layers.1.self_attn.v_proj"
    assert len(tensors) == 4
    assert torch.equal(tensors[f"{prefix}.lora_A.weight"], layer.mean_A)
    assert torch.equal(tensors[f"{prefix}.lora_B.weight"], layer.mean_B)


@pytest.mark.parametrize("export", [export_peft, export_merged])
def test_an_existing_folder_is_kept_unless_it_may_be_overwritten(
    export: Callable[..., None], tiny_llama: Path, tmp_path: Path
) -> None:
    model = learned(tiny_llama, "1", ["q_proj"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    with pytest.raises(AbmllError, match="exists already"):
        export(model.scorer, model.theta, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "data"
    export(model.scorer, model.theta, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "precious").exists()
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_layer_is_not_merged(dtype: torch.dtype, tiny_llama: Path, tmp_path: Path) -> None:
    model = learned(tiny_llama, "1", ["q_proj"])
    wrapped: Any = model.scorer.adapted["model.layers.1.self_attn.q_proj"]
    wrapped.inner.weight = nn.Parameter(torch.zeros(8, dtype=dtype), requires_grad=False)
    with pytest.raises(ConfigError, match=r"q_proj: cannot merge into a quantised layer; export with --format peft"):
        export_merged(model.scorer, model.theta, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
