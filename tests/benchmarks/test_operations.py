"""The operations of a step are counted as stated, and stay as few as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from abmll.common.config import PromptConfig
from benchmarks import operations
from benchmarks.contenders import ALL, QV, Setting
from benchmarks.workload import Workload
from tests.conftest import toy_task

# PEFT asks transformers for a name that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


LAYERS = 8  # enough that what is done once a step does not matter much


@pytest.fixture(scope="module")
def bench(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> operations.LikeGpu:
    """The tiny Llama with more layers, and toy tasks."""
    folder, changed = tmp_path_factory.mktemp("deep"), {"num_hidden_layers": LAYERS}
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama, **changed)).save_pretrained(folder)
    made = operations.LikeGpu(str(folder))
    prompt = PromptConfig(instruction=False, list_options=False, answer="text")
    made.workload = Workload((toy_task("a"), toy_task("b", seed=1)), (), prompt)
    return made


def test_views_and_memory_launch_nothing() -> None:
    weight, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    with operations.Operations() as counted:
        loss = (x @ weight.mT).relu_().sum()
        loss.backward()
    assert dict(counted.launches) == {
        "aten::mm": 2,
        "aten::relu_": 1,
        "aten::sum": 1,
        "aten::ones_like": 1,
        "aten::threshold_backward": 1,
    }
    assert counted.views["aten::transpose"] >= 2
    with operations.Operations() as counted:
        torch.empty(3).view(3, 1).detach()
    assert not counted.launches


def test_a_list_is_one_operation() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    with operations.Operations() as counted:
        torch.ops.aten._foreach_mul_(tensors, 2.0)
    assert dict(counted.launches) == {"aten::_foreach_mul_": 1}


@pytest.mark.parametrize(
    ("modules", "bounds"),
    [(QV, {"weight": 1.3, "output": 1.3, "off": 1.1}), (ALL, {"weight": 1.25, "output": 1.25, "off": 1.05})],
)
def test_step_beside_plain_lora(bench: Any, modules: tuple[str, ...], bounds: dict[str, float]) -> None:
    rows = {row.name: row for row in operations.rows(bench, Setting(modules))}
    label = f"/ {operations.PLAIN} ({Setting(modules).label(bench)})"
    for name, bound in bounds.items():
        contender = operations.OFF if name == "off" else f"{name} space"
        row = rows[f"operations of a step, {contender} {label}"]
        assert row.ratio <= bound
        assert row.numerator is not None
        assert row.numerator > 100 * LAYERS
        assert row.target == operations.TARGETS.get(name)
