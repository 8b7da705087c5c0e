"""Evaluation: the same examples for every method, numbers that follow from the predictions, formats on disk."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import abmll
from abmll import AbmllModel
from abmll.common.config import EvaluateConfig, LearningConfig
from abmll.common.errors import DataError
from abmll.experiments.few_shot import (
    Evaluation,
    evaluate_tasks,
    prediction_rows,
    save_evaluation,
    versions,
)
from abmll.experiments.metrics import evaluate_task
from abmll.language.activation_cache import ActivationCache
from abmll.posterior.calibration import CalibrationPrior
from abmll.tasks import Example, Task
from abmll.tasks.evaluation_examples import choose_examples

CONFIG = EvaluateConfig(steps=2, batch_size=2, num_samples=3, adapt_examples=4, test_examples=5)


@pytest.fixture
def evaluate(tiny_model: AbmllModel, toy_tasks: list[Task]) -> Callable[..., Evaluation]:
    def run(method: str = "abmll", seed: int = 0, **settings: Any) -> Evaluation:
        calibration = CalibrationPrior(0.5) if method == "abmll" else None
        tiny_model.learned(tiny_model.theta, LearningConfig(method=method), 3, calibration)
        return evaluate_tasks(tiny_model, toy_tasks[:2], replace(CONFIG, **settings), seed=seed)

    return run


def test_methods_are_asked_the_same_under_one_seed(
    evaluate: Callable[..., Evaluation], toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    supports: dict[str, list[list[Example]]] = {}
    adapt = AbmllModel.adapt

    def watched(self: AbmllModel, examples: list[Example], **how: Any) -> Any:
        supports.setdefault(self.learning.method, []).append(examples)
        return adapt(self, examples, **how)

    monkeypatch.setattr(AbmllModel, "adapt", watched)
    asked = {}
    for method in ("abmll", "structured-lora", "regular-lora", "pretrained-adapted"):
        asked[method] = [(row["task"], row["id"], row["answer"]) for row in evaluate(method).predictions]
    assert all(asked[method] == asked["abmll"] for method in asked)
    assert all(supports[method] == supports["abmll"] for method in supports)
    assert [len(support) for support in supports["abmll"]] == [4, 4]
    assert [(row["task"], row["id"], row["answer"]) for row in evaluate(seed=1).predictions] != asked["abmll"]
    for task, support in zip(toy_tasks[:2], supports["abmll"][:2], strict=True):
        assert {*support} <= {*task.train}
        assert {identity for name, identity, _ in asked["abmll"] if name == task.name} <= {one.id for one in task.test}


def test_a_smaller_number_of_examples_is_the_beginning_of_a_larger_one(toy_tasks: list[Task]) -> None:
    few, many = (choose_examples(toy_tasks[0], replace(CONFIG, adapt_examples=n, test_examples=n), 0) for n in (3, 8))
    assert (few[0], few[1]) == (many[0][:3], many[1][:3])
    everything = choose_examples(toy_tasks[0], replace(CONFIG, adapt_examples=None, test_examples=None), 0)
    assert [{*side} for side in everything] == [{*toy_tasks[0].train}, {*toy_tasks[0].test}]


def test_metrics_follow_from_the_predictions(evaluate: Callable[..., Evaluation], toy_tasks: list[Task]) -> None:
    evaluation = evaluate()
    assert list(evaluation.tasks) == ["toy0", "toy1"]
    for name, metrics in evaluation.tasks.items():
        rows = [row for row in evaluation.predictions if row["task"] == name]
        assert len(rows) == metrics["num_examples"] == 5
        wanted = evaluate_task(
            [row["probs"] for row in rows],
            [row["answer"] for row in rows],
            [("yes", "no")[row["answer"]] for row in rows],
        )
        assert metrics == wanted
        nll = -sum(math.log(row["probs"][row["answer"]]) for row in rows) / 5
        assert metrics["nll"] == pytest.approx(nll)
    assert evaluation.mean["nll"] == pytest.approx(sum(one["nll"] for one in evaluation.tasks.values()) / 2)
    assert evaluation.pooled["num_examples"] == 10


def test_every_setting_of_evaluation_counts(evaluate: Callable[..., Evaluation]) -> None:
    base = evaluate().predictions
    assert evaluate().predictions == base
    changes: dict[str, Any] = {
        "steps": 3,
        "batch_size": 3,
        "num_samples": 4,
        "prediction_noise": "local",
        "prediction_noise_rank": 3,
        "predictive": "linearized",
        "use_calibration": False,
        "adapt_examples": 5,
        "test_examples": 4,
    }
    assert changes.keys() == vars(CONFIG).keys()
    assert [name for name, value in changes.items() if evaluate(**{name: value}).predictions == base] == []


def test_a_cache_changes_nothing_but_rounding(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    cache = ActivationCache(10**8)
    with_cache, without = (
        evaluate_tasks(tiny_model, toy_tasks[:1], CONFIG, cache=one).tasks["toy0"]["nll"] for one in (cache, None)
    )
    assert with_cache == pytest.approx(without, rel=1e-3)
    assert len(cache.kept) == 9


def test_rows_are_fit_for_json(tiny_model: AbmllModel) -> None:
    questions = [Example("a", "ab", ("yes", "no"), 1), Example("b", "cd", ("red", "green", "blue"), None)]
    prediction = tiny_model.theta_as_posterior("toy").predict(questions, samples=2)
    rows = json.loads(json.dumps(prediction_rows("toy", questions, prediction), allow_nan=False))
    keys = ["task", "id", "probs", "prediction", "answer", "entropy", "expected_entropy", "mutual_information"]
    assert [list(row) for row in rows] == [keys, keys]
    assert [len(row["probs"]) for row in rows] == [2, 3]
    assert [row["answer"] for row in rows] == [1, None]
    for row in rows:
        assert sum(row["probs"]) == pytest.approx(1.0)
        assert row["prediction"] == row["probs"].index(max(row["probs"]))
        assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in row["probs"]))
        information = row["entropy"] - row["expected_entropy"]
        assert row["mutual_information"] == pytest.approx(information, abs=1e-12)
        assert information > 0


def test_files(evaluate: Callable[..., Evaluation], tiny_model: AbmllModel, tmp_path: Path) -> None:
    evaluation = evaluate()
    about = {"run": "runs/x", "suite": "s", "seed": 0, "missing": [], "known_leaks": []}
    save_evaluation(evaluation, tmp_path / "evaluation", tiny_model, CONFIG, about)
    document = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    wanted = "format method label run suite seed missing known_leaks settings versions truncated_prompts"
    assert list(document) == [*wanted.split(), "demonstrations_left_out", "tasks", "mean", "pooled", "sha256"]
    assert document["format"] == "abmll-evaluation-2"
    assert (document["method"], document["label"]) == ("abmll", "ABMLL")
    assert (document["run"], document["suite"], document["seed"]) == ("runs/x", "s", 0)
    assert document["tasks"] == evaluation.tasks
    settings = document["settings"]
    assert (settings["steps"], settings["num_samples"], settings["beta"], settings["r"]) == (2, 3, 3e-5, 2)
    assert document["versions"] == versions()
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__
    assert versions()["abmll"] == abmll.__version__
    lines = (tmp_path / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == evaluation.predictions


@pytest.mark.parametrize("side", ["training", "test"])
def test_what_cannot_be_judged_is_refused_before_any_work(
    tiny_model: AbmllModel, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    monkeypatch.setattr(AbmllModel, "adapt", lambda *_, **__: pytest.fail("adapted although a later task is unusable"))
    split = {"training": "test", "test": "train"}[side]
    rows = tuple(replace(example, split=split) for example in toy_tasks[1].examples)
    broken = Task("broken", rows, source="broken.jsonl")
    with pytest.raises(DataError, match=rf"broken\.jsonl: evaluation needs labelled {side} examples"):
        evaluate_tasks(tiny_model, [toy_tasks[0], broken], CONFIG)
    with pytest.raises(DataError, match="evaluation needs at least one task, and tasks of different names"):
        evaluate_tasks(tiny_model, [], CONFIG)
    with pytest.raises(DataError, match="evaluation needs at least one task, and tasks of different names"):
        evaluate_tasks(tiny_model, [toy_tasks[0], toy_tasks[0]], CONFIG)


def test_an_unlabelled_example_is_refused(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    rows = [replace(example, split="test" if n % 2 else "train") for n, example in enumerate(toy_tasks[0].examples)]
    rows[1] = replace(rows[1], answer=None)
    with pytest.raises(DataError, match="evaluation needs labelled test examples"):
        evaluate_tasks(tiny_model, [Task("toy", tuple(rows))], CONFIG)


def test_cut_prompts_are_counted_on_both_sides(tiny_model: AbmllModel) -> None:
    long = "ab " * 900  # the context has 2048 tokens, one a byte
    rows = tuple(
        Example(str(n), f"{long if n in (0, 1, 4) else ''}{n}", ("yes", "no"), 0, "train" if n < 3 else "test")
        for n in range(6)
    )
    evaluation = evaluate_tasks(
        tiny_model, [Task("t", rows)], replace(CONFIG, adapt_examples=None, steps=0, num_samples=0)
    )
    assert evaluation.truncated == 3
