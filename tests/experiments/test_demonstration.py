"""The demo on a tiny model and toy tasks: its rows and its runs."""

from pathlib import Path
from typing import Any

import pytest

from abmll.common.config import AdapterConfig, EvaluateConfig, ModelConfig, TrainConfig
from abmll.experiments import trained as runs
from abmll.experiments.demonstration import METHODS, Demo, DemoSettings
from abmll.tasks import Task
from abmll.tasks.suite import Suite

SETTINGS = DemoSettings(
    AdapterConfig(r=2, layers_to_transform="1", target_modules=("q_proj",)),
    TrainConfig(max_steps=1, inner_steps=1, per_device_train_batch_size=2, calibration_tasks=1, calibration_examples=2),
    EvaluateConfig(adapt_examples=4, test_examples=3, steps=1, num_samples=5),
)


@pytest.fixture
def demo(toy_tasks: list[Task], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """One whose tasks need no download."""
    toy = Suite("toy", "", tuple(toy_tasks[:2]), (toy_tasks[2],), {"instruction": False, "list_options": False})
    monkeypatch.setattr("abmll.experiments.demonstration.fetch_bigbench", lambda say, quiet: None)
    monkeypatch.setattr("abmll.experiments.demonstration.load_suite", lambda name: toy)
    return Demo(tmp_path / "demo", SETTINGS, ModelConfig(str(tiny_llama)), lambda line: None, True)


def test_every_method_has_a_row_and_the_mixture_shares_abmlls_run(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    trainer = runs.MetaTrainer

    def counted(model: Any, tasks: Any, config: TrainConfig, cache: Any) -> Any:
        trained.append(config.method)
        return trainer(model, tasks, config, cache)

    monkeypatch.setattr(runs, "MetaTrainer", counted)
    rows = demo.run()["methods"]
    assert tuple(rows) == METHODS
    assert trained == ["structured-lora", "abmll"]
    assert {name: row["run"] for name, row in rows.items()} == {
        "pretrained-adapted": None,
        "structured-lora": "structured-lora",
        "abmll": "abmll",
        "abmll-mixture": "abmll",
    }
    assert rows["abmll-mixture"]["cost"] == rows["abmll"]["cost"]
    assert rows["abmll-mixture"]["mean"]["nll"] != rows["abmll"]["mean"]["nll"]
    assert (tmp_path / "demo" / "evaluation" / "abmll-mixture" / "metrics.json").is_file()
