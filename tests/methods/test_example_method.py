"""What CONTRIBUTING.md says of a new learning rule: its file, a row in the registry, and this test."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.methods import REGISTRY
from abmll.tasks import Task

FILE = Path(__file__).with_name("example_method.py")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, its rule registered for the time of a test."""
    spec = importlib.util.spec_from_file_location("example_method", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(REGISTRY, module.Proximal.name, module.Proximal)
    return module


def test_the_text_shows_the_file() -> None:
    text = (FILE.parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```python\n{FILE.read_text(encoding='utf-8')}```\n" in text


def test_a_new_rule_trains_and_adapts(
    example: Any, tiny_model: AbmllModel, toy_tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a leash it is Reptile; the shorter the leash, the nearer phi stays to theta."""
    learned, distances = {}, {}
    for name, method, weight in (("reptile", "reptile", 0.0), ("free", "proximal", 0.0), ("tied", "proximal", 1e4)):
        monkeypatch.setattr(example, "WEIGHT", weight)
        config = TrainConfig(method=method, output_dir=str(tmp_path / name), max_steps=2, inner_steps=2)
        MetaTrainer(tiny_model, toy_tasks, config).train()
        phi = tiny_model.adapt(toy_tasks[0].train[:4], steps=4, batch_size=2).phi
        learned[name] = torch.cat([tensor.flatten() for tensor in phi.mean_tensors()])
        theta = torch.cat([tensor.flatten() for tensor in tiny_model.theta.mean_tensors()])
        distances[name] = float((learned[name] - theta).norm())
    assert torch.equal(learned["free"], learned["reptile"])
    assert 0 < distances["tied"] < 0.9 * distances["free"]
