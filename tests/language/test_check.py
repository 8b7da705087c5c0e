"""Architectures that would be scored wrongly are refused when a scorer is made, not discovered in the results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from abmll.common.config import PromptConfig
from abmll.common.errors import CheckpointError, ConfigError
from abmll.language.check import check_scoring, probe_example
from abmll.language.scorer import OptionScorer


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        # Reads both ways.
        ("bert", {"is_decoder": False}, "gives an option another probability beside others"),
        # Convolutions over neighbouring positions, whatever the attention mask.
        (
            "lfm2",
            {"num_key_value_heads": 2, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
            "gives an option another probability beside others",
        ),
        # A recurrence without positions.
        ("mamba", {}, "has no max_position_embeddings"),
    ],
)
def test_architectures_that_cannot_be_scored_side_by_side_are_refused(
    family: str, config: dict[str, Any], message: str, make_folder: Any, make_scorer: Any
) -> None:
    folder = make_folder(family, **config)
    with pytest.raises(ConfigError, match=message) as caught:
        make_scorer(folder, target_modules=("all-linear",))
    assert str(caught.value).startswith(f"model: {folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("length_normalize", [False, True])
def test_a_sound_model_passes_whatever_the_prompt_settings(
    dtype: str, length_normalize: bool, make_scorer: Callable[..., OptionScorer], deep_llama: Path
) -> None:
    prompt = PromptConfig(length_normalize=length_normalize)
    assert make_scorer(deep_llama, dtype=dtype, prompt=prompt, layers_to_transform="top-2").lower_blocks.blocks


def test_weights_that_are_not_numbers_are_refused(make_folder: Any, make_scorer: Any) -> None:
    folder = make_folder("llama", num_key_value_heads=2)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"its probabilities are not numbers; the weights are damaged$"):
        make_scorer(folder)


def test_each_comparison_can_fail_on_its_own(make_scorer: Callable[..., OptionScorer], deep_llama: Path) -> None:
    scorer = make_scorer(deep_llama)
    model = scorer.base.model

    def true(examples: Any) -> torch.Tensor:
        return scorer.scores(scorer.batch(examples), None).answer_tokens

    def scaled(examples: Any) -> torch.Tensor:
        return true(examples) * 1.01

    def leaking(examples: Any) -> torch.Tensor:
        # Within the tolerance of the first comparison, but not the same beside another neighbour.
        return true(examples) + torch.tensor([0.0, 0.5e-3]) * true(examples)

    def failing(examples: Any) -> torch.Tensor:
        raise TypeError("forward() got an unexpected keyword\nand a second line")

    check_scoring(model, "m", true)
    for score in (scaled, leaking):
        with pytest.raises(ConfigError, match=r"^model: m: LlamaForCausalLM gives an option another probability"):
            check_scoring(model, "m", score)
    with pytest.raises(ConfigError, match=r"^model: m: .* side by side: forward\(\) got an unexpected keyword$"):
        check_scoring(model, "m", failing)


def test_the_probe_fits_a_small_vocabulary(make_scorer: Callable[..., OptionScorer]) -> None:
    probe = probe_example(make_scorer("llama").base.model)
    tokens = [*probe.prompt, *probe.options[0], *probe.options[1]]
    assert len(set(tokens)) == 8
    assert all(0 < token < 259 for token in tokens)
