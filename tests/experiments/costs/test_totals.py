"""``abmll estimate``: shapes, devices, totals, and the verb."""

import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from abmll.cli.main import entry
from abmll.common.config import EstimateConfig
from abmll.common.errors import ConfigError
from abmll.experiments.costs import METHODS, estimate_all, find_gpu, load_shape
from abmll.experiments.costs.shapes import adapted
from abmll.experiments.costs.totals import Estimate, abmll, lora, maml, published
from abmll.model.meta_learner import AbmllModel

DOCS = Path(__file__).parents[3] / "docs" / "estimate.md"
QV = ("q_proj", "v_proj")
SMALL = EstimateConfig(model_config="smollm2-135m", sequence_length=128)


def cost_of(method: Any, config: EstimateConfig) -> Estimate:
    return method(load_shape(config.model_config, config.target_modules, config.layers_to_transform), config)


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("smollm2-135m", 134_515_008, 30),
        ("llama3-8b", 8_030_261_248, 32),
        ("qwen2-7b", 7_615_616_512, 28),
        ("llama3-70b", 70_553_706_496, 80),
    ],
)
def test_built_in_shapes_have_their_published_sizes(name: str, parameters: int, layers: int) -> None:
    shape = load_shape(name, QV, None)
    assert shape.parameters == parameters
    assert len(shape.blocks) == layers
    assert len(shape.adapted) == 2 * layers


def test_shape_of_a_folder_is_that_of_its_model(tiny_llama: Path) -> None:
    shape = load_shape(str(tiny_llama), ("all-linear",), "1")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape == replace(load_shape(str(tiny_llama / "config.json"), ("all-linear",), "1"), name=shape.name)
    linears = model.model.layers[1].self_attn, model.model.layers[1].mlp
    sizes = {name: part.weight.shape for one in linears for name, part in one.named_children() if "proj" in name}
    assert {name: (one.d_out, one.d_in) for name, one in shape.blocks[1].items()} == sizes
    assert [len(adapted(block)) for block in shape.blocks] == [0, 7]
    assert not shape.blocks[1]["q_proj"].needs_input
    assert shape.blocks[1]["o_proj"].needs_input


def test_adapter_parameters_are_those_of_the_adapter(tiny_llama: Path) -> None:
    theta = AbmllModel.from_base(str(tiny_llama), r=3, target_modules=["q_proj", "down_proj"]).theta
    config = EstimateConfig(model_config=str(tiny_llama), r=3, target_modules=("q_proj", "down_proj"))
    count = sum(tensor.numel() for _, tensor in theta.named_tensors())
    assert cost_of(abmll, config).adapter_parameters == 2 * count
    mean = sum(tensor.numel() for tensor in theta.mean_tensors())
    assert cost_of(lora, config).adapter_parameters == mean
    assert cost_of(published, config).adapter_parameters == 4 * mean
    assert cost_of(abmll, config).memory.optimizer == 2 * cost_of(abmll, config).memory.adapters


@pytest.mark.parametrize(("name", "millions"), [("llama3-8b", 78.6), ("qwen2-7b", 77.1)])
def test_published_adapters_have_their_published_size(name: str, millions: float) -> None:
    six = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    cost = cost_of(published, EstimateConfig(model_config=name, target_modules=six, layers_to_transform=None))
    assert round(cost.adapter_parameters / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_config": "lama3-8b"}, "'lama3-8b' is no known shape and no file. Did you mean 'llama3-8b'?"),
        ({"model_config": "{folder}"}, "has no config.json; give a model's folder"),
        ({"model_config": "{folder}/bad.json"}, "is no model's configuration"),
        ({"model_config": "{folder}/gpt2.json"}, "blocks of gpt2 are not counted; known are those with two norms"),
        ({"model_config": "{folder}/empty.json"}, "is no model's configuration"),
        ({"model_config": "{folder}/odd.json"}, "is no model's configuration"),
        ({"model_config": "{folder}/t5.json"}, "no causal language model has this shape"),
        ({"target_modules": ("q_prj",)}, "'q_prj' matches no layer. Did you mean 'q_proj'?"),
        ({"layers_to_transform": "40"}, "the model has decoder layers 0-31"),
    ],
)
def test_shapes_that_cannot_be(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    AutoConfig.for_model("gpt2", n_layer=2).to_json_file(tmp_path / "gpt2.json")
    AutoConfig.for_model("t5").to_json_file(tmp_path / "t5.json")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "odd.json").write_text('{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 0}')
    config = EstimateConfig(**settings)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_shape(config.model_config.format(folder=tmp_path), config.target_modules, config.layers_to_transform)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "memory", "peak"),
    [
        ("80GB", 80 * 10**9, 312e12),
        ("40GiB", 40 * 2**30, 312e12),
        ("0.5 tb", 5 * 10**11, 312e12),
        ("H100", 80 * 10**9, 989.4e12),
        ("h200", 141 * 10**9, 989.4e12),
    ],
)
def test_gpus(text: str, memory: int, peak: float) -> None:
    gpu = find_gpu(text)
    assert (gpu.memory, gpu.peak["bf16"]) == (memory, peak)


@pytest.mark.parametrize(("text", "hint"), [("h10", "'h100'"), ("80", "80GB"), ("0GB", "80GB"), ("-3GB", "80GB")])
def test_gpus_that_are_none(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        find_gpu(text)


def test_largest_batch_is_the_last_that_fits() -> None:
    gpu = find_gpu("4GB")
    shape = load_shape("smollm2-135m", QV, None)
    estimates = estimate_all(shape, SMALL, gpu, 1e12)
    for method, estimate in zip(METHODS, estimates, strict=True):
        for batch, anew in ((estimate.largest_batch, False), (estimate.checkpointed_largest_batch, True)):
            if batch is None:
                assert method is maml
                continue
            assert batch > 0
            for size, fits in ((batch, True), (batch + 1, False)):
                cost = method(shape, replace(SMALL, per_device_train_batch_size=size))
                memory = cost.checkpointed if anew else cost.memory
                assert memory is not None
                assert (memory.total <= gpu.memory) is fits


def test_what_does_not_fit_has_no_batch() -> None:
    shape = load_shape("smollm2-135m", QV, None)
    assert {one.largest_batch for one in estimate_all(shape, SMALL, find_gpu("0.2GB"), 1e12)} == {0}


def test_episodes_are_made_of_steps() -> None:
    shape = load_shape("smollm2-135m", QV, None)
    ours, plain, four, second = estimate_all(shape, SMALL, find_gpu("80GB"), 1e12)
    assert 0 < ours.episode_flops - 5 * ours.step_flops < 0.001 * ours.step_flops
    assert plain.episode_flops == 5 * plain.step_flops
    assert four.episode_flops == 6 * four.step_flops
    assert second.episode_flops > 10 * second.step_flops
    assert plain.step_seconds == plain.step_flops / 1e12


def test_what_depends_on_what() -> None:
    """Adapters on the upper blocks keep fewer activations; checkpointing trades them for operations."""
    whole, top = (cost_of(abmll, replace(SMALL, layers_to_transform=layers)) for layers in (None, "top-12"))
    assert top.memory.activations < 0.45 * whole.memory.activations
    assert top.step_flops < whole.step_flops
    assert whole.checkpointed is not None
    assert whole.checkpointed.activations < 0.2 * whole.memory.activations
    assert whole.checkpointed.weights == whole.memory.weights == 2 * 134_515_008
    assert whole.checkpointed_step_flops is not None
    assert whole.checkpointed_step_flops > 1.2 * whole.step_flops


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    register = torch.nn.Module.register_parameter

    def spy(self: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:
            made.append(parameter.device)
        register(self, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", spy)
    load_shape("llama3-70b", QV, None)
    assert len(made) > 500
    assert {device.type for device in made} == {"meta"}


def test_verb_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model-config", "smollm2-135m", "--gpu", "h100", "--efficiency", "0.5", "--json"]
    assert entry(["estimate", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["parameters"] == 134_515_008
    assert shown["device"] == {"name": "H100", "memory": 80 * 10**9, "peak": 989.4e12}
    assert [one["method"] for one in shown["methods"]] == ["ABMLL", "Plain LoRA", "Published", "MAML"]
    for one in shown["methods"]:
        parts = one["memory"]
        assert parts.pop("fits") is True
        assert parts.pop("total") == sum(parts.values())
        assert one["step_seconds"] == pytest.approx(one["step_flops"] / 989.4e12 / 0.5)
    defaults = asdict(EstimateConfig(model_config="smollm2-135m", gpu="h100", efficiency=0.5))
    assert shown["settings"] == json.loads(json.dumps(defaults))


def test_verb_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "estimate",
        "--model-config",
        "smollm2-135m",
        "--layers-to-transform",
        "top-12",
        "--peak-tflops",
        "100",
    ]
    assert entry(arguments) == 0
    whole = capsys.readouterr().out
    assert "100 TFLOP/s at an efficiency of 0.4" in whole
    assert "a gradient through blocks 18-29" in whole
    assert entry([*arguments, "--quiet"]) == 0
    table = capsys.readouterr().out
    assert whole.endswith("\n" + table)
    assert table.split()[:5] == ["ABMLL", "Plain", "LoRA", "Published", "MAML"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-config", "qwen2-7"], "model_config: 'qwen2-7' is no known shape and no file. Did you mean"),
        (["--gpu", "h300"], "gpu is 'h300', neither a known GPU nor a memory. Did you mean 'h200'?"),
        (["--efficency", "1"], "estimate: unknown flag '--efficency'. Did you mean '--efficiency'?"),
        (["--efficiency", "0"], "estimate: --efficiency is '0'; use a finite number above 0"),
        (["--dtype", "fp16"], "estimate: --dtype is 'fp16'; use 'bf16' or 'fp32'"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["estimate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_tables_in_the_docs_are_what_their_commands_say(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(
        r"```bash\nabmll (estimate .*?)\n```\n\n```\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(found) >= 3
    for command, table in found:
        assert entry(shlex.split(command)) == 0
        assert capsys.readouterr().out == table
