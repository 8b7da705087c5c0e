"""Operations against torch's own counter, on a meta device: nothing is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from abmll.common.config import EstimateConfig
from abmll.experiments.costs import flops
from abmll.experiments.costs.shapes import Shape, config_of, load_shape, meta_model
from abmll.language.targets import find_targets
from abmll.posterior.rank_one import rank_one_kl
from abmll.posterior.stacks import Factors

EXAMPLES, LENGTH, SCORED = 3, 50, 4
ALL = ("all-linear",)
CHOICES = [
    (("q_proj", "v_proj"), None),
    (ALL, None),
    (ALL, "1"),
    (("down_proj",), None),
    (("o_proj", "up_proj"), None),
    (("k_proj",), "1"),
]


class Adapted(nn.Module):
    """A frozen linear layer with B A beside it, A and B learned or not."""

    def __init__(self, base: nn.Module, d_out: int, d_in: int, r: int, learns: bool) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.empty(r, d_in, device="meta"), requires_grad=learns)
        self.B = nn.Parameter(torch.empty(d_out, r, device="meta"), requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


def model_and_shape(folder: Path, config: EstimateConfig, branches: tuple[bool, ...]) -> tuple[Any, Shape]:
    """The model in ``folder`` without memory, adapters hung on it one inside the other; its shape."""
    shape = load_shape(str(folder), config.target_modules, config.layers_to_transform)
    model: Any = meta_model(AutoConfig.from_pretrained(folder, attn_implementation=config.attention), "tiny")
    model.requires_grad_(False)
    for target in find_targets(model, config.target_modules, config.layers_to_transform):
        layer = model.get_submodule(target.name)
        for learns in branches:
            layer = Adapted(layer, target.d_out, target.d_in, config.r, learns)
        model.set_submodule(target.name, layer)
    return model, shape


def loss_of(model: Any) -> Tensor:
    """Logits of a few positions, summed up."""
    ids = torch.zeros(EXAMPLES, LENGTH, dtype=torch.long, device="meta")
    mask = torch.zeros(EXAMPLES, 1, LENGTH, LENGTH, device="meta")
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -SCORED:]
    return torch.logsumexp(model.lm_head(hidden.flatten(0, 1)), -1).sum()


def settings(modules: tuple[str, ...], layers: str | None, attention: str = "eager") -> EstimateConfig:
    return EstimateConfig(
        per_device_train_batch_size=EXAMPLES,
        sequence_length=LENGTH,
        target_modules=modules,
        layers_to_transform=layers,
        attention=attention,  # pyright: ignore[reportArgumentType] (it checks)
    )


def base_flops(shape: Shape, config: EstimateConfig) -> int:
    return flops.base_flops(shape, config, EXAMPLES * SCORED)


@pytest.mark.parametrize(("modules", "layers"), CHOICES)
def test_a_step_exactly(tiny_llama: Path, modules: tuple[str, ...], layers: str | None) -> None:
    config = settings(modules, layers)
    model, shape = model_and_shape(tiny_llama, config, (True,))
    with FlopCounterMode(display=False) as counter:
        loss_of(model).backward()
    assert counter.get_total_flops() == base_flops(shape, config) + flops.adapter_flops(shape, config)


@pytest.mark.parametrize("model", ["llama3-8b", "qwen2-7b"])
def test_a_step_of_the_paper_s_models_exactly(model: str, tmp_path: Path) -> None:
    """At their own size: all layers, the adapters of the paper."""
    config = settings(EstimateConfig.target_modules, None)
    config_of(model).save_pretrained(tmp_path)
    with_adapters, shape = model_and_shape(tmp_path, config, (True,))
    with FlopCounterMode(display=False) as counter:
        loss_of(with_adapters).backward()
    assert counter.get_total_flops() == base_flops(shape, config) + flops.adapter_flops(shape, config)


@pytest.mark.parametrize(("modules", "layers"), CHOICES)
def test_a_branch_that_does_not_learn_exactly(tiny_llama: Path, modules: tuple[str, ...], layers: str | None) -> None:
    config = settings(modules, layers)
    model, shape = model_and_shape(tiny_llama, config, (True, False))
    with FlopCounterMode(display=False) as counter:
        loss_of(model).backward()
    adapters = sum(flops.adapter_flops(shape, config, learns=learns) for learns in (True, False))
    assert counter.get_total_flops() == base_flops(shape, config) + adapters


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ALL])
def test_attention_in_one_kernel_costs_one_product_more(tiny_llama: Path, modules: tuple[str, ...]) -> None:
    eager, fused = settings(modules, None), settings(modules, None, "sdpa")
    shape = load_shape(str(tiny_llama), modules, None)
    product = 2 * EXAMPLES * LENGTH**2 * shape.width
    # In the lowest block q and v alone let eager attention leave out k's gradient.
    extra = len(shape.blocks) + (modules != ALL)
    assert base_flops(shape, fused) - base_flops(shape, eager) == extra * product


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ALL])
def test_second_order_step(tmp_path: Path, modules: tuple[str, ...]) -> None:
    """Of a deeper model: the formula leaves out that some gradients end within the lowest adapted block."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 259}
    AutoConfig.for_model("llama", **sizes, num_hidden_layers=4).save_pretrained(tmp_path)
    config = settings(modules, None)
    model, shape = model_and_shape(tmp_path, config, (True,))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with FlopCounterMode(display=False) as counter:
        gradients = torch.autograd.grad(loss_of(model), learned, create_graph=True)
        first = counter.get_total_flops()
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    expected = flops.second_order_flops(shape, config, EXAMPLES * SCORED)
    assert expected == pytest.approx(counter.get_total_flops() - first, rel=0.05)


def test_divergence_exactly(tiny_llama: Path) -> None:
    config = settings(("q_proj",), "1")
    shape = load_shape(str(tiny_llama), config.target_modules, config.layers_to_transform)
    [linear] = shape.adapted
    sizes = ((1, 8, linear.d_in), (1, linear.d_out, 8), (1, 1, linear.d_in), (1, linear.d_out, 1))
    phi = Factors(*(torch.empty(size, device="meta", requires_grad=True) for size in sizes))
    theta = Factors(*(torch.empty(size, device="meta") for size in sizes))
    with FlopCounterMode(display=False) as counter:
        rank_one_kl(phi, theta, 2.0).backward()
    assert counter.get_total_flops() == flops.divergence_flops(shape, config)
