"""How much is tried: a fifth in ``make test``, all of it in ``make fuzz``; and saved folders of every kind."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from abmll import AbmllModel, MetaTrainer, TrainConfig
from abmll.common.config import EvaluateConfig, PromptConfig
from abmll.experiments.few_shot import Evaluation, save_evaluation
from abmll.model.classifier import AbmllClassifier
from abmll.tasks import Example, Task

SHARE = 1.0 if os.environ.get("ABMLL_FUZZ") else 0.2
# What passes once passes again: the seed is ABMLL_SEED (``make fuzz SEED=7``), else 0.
settings.register_profile(
    "abmll",
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("abmll")


@pytest.fixture(scope="session")
def tries() -> Callable[[int], int]:
    """Of so many in ``make fuzz``, how many are tried now."""
    return lambda whole: max(1, round(whole * SHARE))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``model`` was trained."""
    return tmp_path_factory.mktemp("reliability") / "run"


@pytest.fixture(scope="session")
def model(run: Path, family_folder: Callable[[str], Path]) -> AbmllModel:
    """A trained theta with a calibration."""
    torch.set_num_threads(1)
    prompt = PromptConfig(instruction=False, list_options=False)
    base = str(family_folder("llama"))
    trained = AbmllModel.from_base(base, prompt=prompt, r=2, layers_to_transform="1", target_modules=["q_proj"])
    short: dict[str, Any] = {"inner_steps": 1, "per_device_train_batch_size": 2, "calibration_examples": 4}
    config = TrainConfig(output_dir=str(run), max_steps=2, method="abmll", calibration_tasks=2, **short)
    MetaTrainer(trained, [task(f"toy{n}") for n in range(2)], config).train()
    return AbmllModel.from_pretrained(run, model=trained.scorer.base.twin())


def task(name: str, size: int = 24) -> Task:
    """Which letter does the text end with?"""
    rows = [Example(str(n), f"{name} {n} {'ab'[n % 2]}", ("yes", "no"), n % 2) for n in range(size)]
    return Task(name, tuple(rows))


@pytest.fixture(scope="session")
def folders(model: AbmllModel, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved things of every kind: run, posterior, mixture, head, classifier, evaluation. They are read only."""
    root = tmp_path_factory.mktemp("saved")
    examples = task("new").examples
    model.adapt(examples, steps=2, how="full").save_pretrained(root / "posterior")
    mixture = model.continue_as("abmll-mixture", ensemble_size=2)
    mixture.adapt(examples, steps=1, how="full").save_pretrained(root / "mixture")
    model.adapt(examples, how="head").save_pretrained(root / "head")
    shutil.copytree(run, root / "run")
    texts = [example.input for example in examples]
    labels = [example.options[example.answer or 0] for example in examples]
    AbmllClassifier(model=model.scorer.base.name).fit(texts, labels).save_pretrained(root / "classifier")
    measured = {"new": {"accuracy": 0.5, "nll": 0.7, "ece": None, "num_examples": 24}}
    rows = [{"task": "new", "id": "0", "probs": [0.5, 0.5], "prediction": 0, "answer": 0}]
    about = {"run": "run", "suite": "toys", "seed": 0, "missing": [], "known_leaks": []}
    evaluation = Evaluation(measured, measured["new"], measured["new"], rows, 0, 0, {})
    save_evaluation(evaluation, root / "evaluation", model, EvaluateConfig(), about)
    return root
