"""Which layers are chosen: PEFT's matching rules, its 'all-linear', and clear refusals."""

from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from abmll.common.errors import ConfigError
from abmll.language.targets import Target, blocks_path, find_targets, parse_layers

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 48}


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    config = AutoConfig.for_model("llama", **SIZES, vocab_size=99, num_key_value_heads=2)
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=32, n_head=4, n_layer=2, vocab_size=99))


def names(targets: list[Target]) -> list[str]:
    return [target.name for target in targets]


def test_a_name_matches_the_ends_of_module_names(llama: nn.Module) -> None:
    targets = find_targets(llama, ("q_proj", "v_proj"), None)
    assert names(targets) == [f"model.layers.{i}.self_attn.{end}" for i in range(3) for end in ("q_proj", "v_proj")]
    assert targets[3] == Target("model.layers.1.self_attn.v_proj", block=1, d_out=16, d_in=32)
    assert names(find_targets(llama, ("1.mlp.down_proj",), None)) == ["model.layers.1.mlp.down_proj"]
    assert names(find_targets(llama, ("model.layers.2.mlp.up_proj",), None)) == ["model.layers.2.mlp.up_proj"]


def test_a_name_must_end_at_a_dot(llama: nn.Module) -> None:
    with pytest.raises(ConfigError):
        find_targets(llama, ("proj",), None)


def test_targets_are_those_that_peft_would_choose(llama: nn.Module, gpt2: nn.Module) -> None:
    for model, wanted, layers in [
        (llama, ["q_proj", "down_proj"], None),
        (llama, ["0.self_attn.k_proj", "up_proj"], None),
        (llama, ["v_proj"], [0, 2]),
        (gpt2, ["c_attn", "attn.c_proj"], None),
        (gpt2, ["c_proj"], [1]),
    ]:
        config = LoraConfig(target_modules=wanted, layers_to_transform=layers)
        theirs = [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]
        ours = find_targets(model, tuple(wanted), None if layers is None else ",".join(map(str, layers)))
        assert names(ours) == theirs


def test_all_linear_is_every_linear_layer_but_the_head(llama: nn.Module, gpt2: nn.Module) -> None:
    ends = {name.rsplit(".", 1)[1] for name in names(find_targets(llama, ("all-linear",), "1"))}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    everything = find_targets(llama, ("all-linear",), None)
    assert len(everything) == 3 * 7
    assert "lm_head" not in names(everything)
    shapes = {target.name.split(".", 3)[3]: target[2:] for target in find_targets(gpt2, ("all-linear",), "0")}
    assert shapes == {
        "attn.c_attn": (96, 32),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (128, 32),
        "mlp.c_proj": (32, 128),
    }


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("q_prj",), r"target_modules: 'q_prj' matches no layer\. Did you mean 'q_proj'\? This model has down_proj, "),
        (("q_proj", "zzz"), r"target_modules: 'zzz' matches no layer\. This model has down_proj, gate_proj, "),
        (("lm_head",), r"target_modules: 'lm_head' matches no layer"),
        (("mlp",), r"target_modules: 'mlp' matches no layer"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_the_nearest(
    wanted: tuple[str, ...], message: str, llama: nn.Module
) -> None:
    with pytest.raises(ConfigError, match=r"^" + message) as caught:
        find_targets(llama, wanted, None)
    assert "\n" not in str(caught.value)


def test_names_that_match_only_outside_the_chosen_layers_are_refused(llama: nn.Module) -> None:
    message = r"^layers_to_transform: 1: none of target_modules 2\.mlp\.up_proj lies there$"
    with pytest.raises(ConfigError, match=message):
        find_targets(llama, ("2.mlp.up_proj",), "1")


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (None, {0, 1, 2, 3, 4, 5}),
        ("1-3", {1, 2, 3}),
        ("0,5,2", {0, 2, 5}),
        ("0, 4-5", {0, 4, 5}),
        ("top-2", {4, 5}),
        ("top-6", {0, 1, 2, 3, 4, 5}),
        ("top-7", {0, 1, 2, 3, 4, 5}),
        ("top-third", {4, 5}),
        ("top-half", {3, 4, 5}),
        ("3", {3}),
        ("2-2", {2}),
    ],
)
def test_forms_of_layers(text: str | None, blocks: set[int]) -> None:
    assert parse_layers(text, 6) == blocks


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1-2-3", "1;2", "top-", "top", "top-x", "top-thirds", "1,,2"])
def test_malformed_layers_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not '18-29', '0,5,7', 'top-12', 'top-third' or 'top-half'$"):
        parse_layers(text, 6)


@pytest.mark.parametrize(("share", "expected"), [("third", [1, 1, 1, 1, 2, 10]), ("half", [1, 1, 2, 2, 2, 15])])
def test_a_share_of_the_layers_is_rounded_and_never_none(share: str, expected: list[int]) -> None:
    assert [len(parse_layers(f"top-{share}", count)) for count in (1, 2, 3, 4, 5, 30)] == expected


@pytest.mark.parametrize("text", ["6", "0-6", "3-2", "top-0", "top--1", "0-99999999999999"])
def test_layers_that_the_model_does_not_have_are_refused_with_those_it_has(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the model has decoder layers 0-5$"):
        parse_layers(text, 6)


class Experts(nn.Module):
    """A block with more experts than the model has blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))


def test_decoder_blocks_are_not_confused_with_the_experts_in_them() -> None:
    model: Any = nn.Module()
    model.decoder = nn.Module()
    model.adapters = nn.ModuleList([nn.Linear(4, 4)])
    model.decoder.blocks = nn.ModuleList(Experts() for _ in range(2))
    assert blocks_path(model) == "decoder.blocks"
    targets = find_targets(model, ("all-linear",), "top-1")
    assert names(targets) == [f"decoder.blocks.1.experts.{index}" for index in range(9)]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^Linear has no list of decoder blocks"):
        find_targets(nn.Linear(2, 2), ("all-linear",), None)
