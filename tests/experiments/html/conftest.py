"""Realistic folders to develop and test the report against: a run, an evaluation, a comparison of methods.

The predictions come of a simple world: every task has a difficulty, every method a skill and a sharpness; a method
is overconfident where its sharpness exceeds the truth of its logits.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from abmll.experiments.html import write_report
from abmll.experiments.metrics import Predictions, evaluate_task, mean_over_tasks, pooled

TASKS = {  # name -> (number of test examples, number of options, difficulty)
    "snarks": (36, 2, 0.2),
    "formal_fallacies_syllogisms_negation": (200, 2, 0.15),
    "movie_dialog_same_or_different": (200, 2, 0.5),
    "question_selection": (120, 4, 1.0),
    "sports_understanding": (197, 2, 0.7),
    "strange_stories.multiple_choice": (34, 4, 1.4),
    "timedial": (160, 3, 0.5),
    "unit_interpretation.lv0": (40, 5, 0.3),
}
METHODS = {  # key -> (label, skill, sharpness)
    "abmll": ("ABMLL", 1.15, 1.3),
    "structured-lora": ("Structured LoRA", 1.05, 2.2),
    "pretrained": ("Pretrained, adapted", 0.8, 2.0),
}
VERSIONS = {"abmll": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"}
SETTINGS = {
    **{"model": "smollm2-135m", "dtype": "bf16", "device": "cpu"},
    **{"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": "top-12"},
    **{"steps": 10, "batch_size": 2, "num_samples": 16, "prediction_noise": "shared"},
    **{"answer": "text", "instruction": False},
}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def predictions(skill, sharpness, tasks, seed):
    """Predictions per task; a pure function of its arguments."""
    result = {}
    for index, (name, (count, options, difficulty)) in enumerate(tasks.items()):
        rng = np.random.default_rng([index, 7])  # the same examples for every method
        answers = rng.integers(options, size=count)
        noise = rng.normal(size=(count, options)) + 0.4 * np.random.default_rng([seed, index]).normal(
            size=(count, options)
        )
        logits = sharpness * (noise + skill * difficulty * np.eye(options)[answers])
        probs = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        result[name] = Predictions(list(probs), answers.tolist())
    return result


def write_evaluation(folder, method="abmll", tasks=None, seed=0, methods=None):
    """metrics.json and predictions.jsonl of one method; returns the content of metrics.json."""
    label, skill, sharpness = (methods or METHODS)[method]
    by_task = predictions(skill, sharpness, tasks or TASKS, seed)
    metrics = {name: evaluate_task(*p) for name, p in by_task.items()}
    content = {
        "format": "abmll-evaluation-2", "method": method, "label": label, "run": "..", "suite": "bigbench-demo",
        "seed": seed, "missing": [], "known_leaks": [], "settings": SETTINGS, "versions": VERSIONS, "tasks": metrics,
        "truncated_prompts": 0, "demonstrations_left_out": 0,
        "mean": mean_over_tasks(metrics), "pooled": pooled(by_task),
    }  # fmt: skip
    rows = [
        {
            "task": name, "id": f"{name}-{i}", "probs": p.tolist(), "prediction": int(np.argmax(p)), "answer": answer,
            "entropy": 0.5, "expected_entropy": 0.45, "mutual_information": 0.05,
        }
        for name, task in by_task.items()
        for i, (p, answer) in enumerate(zip(task.probs, task.answers, strict=True))
    ]  # fmt: skip
    write_rows(folder / "predictions.jsonl", rows)
    (folder / "metrics.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return content


def write_run(folder, bayesian=True, episodes=100, start=1.3, seed=0):
    """config.yaml, metrics.jsonl and timing.jsonl of one training run."""
    rng = np.random.default_rng([seed, 3])
    level = 0.62 + (start - 0.62) * np.exp(-np.arange(episodes) / 30)
    nll = level + 0.25 * rng.normal(size=episodes) * level + 0.3 * (rng.random(episodes) < 0.05)
    rows = [
        {
            "episode": n + 1, "task": f"train_{n % 18}", "nll": float(abs(nll[n])), "accuracy": float(np.exp(-nll[n])),
            "kl": float(3e4 * (1 - np.exp(-n / 15)) * rng.uniform(0.8, 1.2)) if bayesian else 0.0,
            "prior": 2.1e6 if bayesian else 0.0, "loss": float(8 * nll[n]), "grad_norm": float(rng.uniform(1, 6)),
            "log_sigma": -4 - 0.6 * (1 - float(np.exp(-n / 50))) if bayesian else None,
        }
        for n in range(episodes)
    ]  # fmt: skip
    write_rows(folder / "metrics.jsonl", rows)
    timing = [{"episode": n + 1, "seconds": float(rng.uniform(1.5, 2.5)), "tokens": 2400} for n in range(episodes)]
    write_rows(folder / "timing.jsonl", timing)
    (folder / "config.yaml").write_text(
        "model: smollm2-135m\nmethod: abmll\nbeta: 1.0e-06\nmax_steps: 100\n",
        encoding="utf-8",
    )


def write_comparison(folder, tasks=None, methods=None):
    """A demo folder: comparison.json over the methods, each with its evaluation and, where trained, its run."""
    methods = methods or METHODS
    cells = {}
    for index, (key, (label, _, _)) in enumerate(methods.items()):
        content = write_evaluation(folder / key / "evaluation", key, tasks, seed=index, methods=methods)
        trained = key != "pretrained"
        if trained:
            write_run(folder / key, bayesian=key == "abmll", start=1.3 + 0.1 * index, seed=index)
        cells[key] = {
            "label": label,
            "settings": {"method": key, "beta": 1e-6 if key == "abmll" else 0.0},
            "cost": {
                "seconds": 215.3 + 40 * index if trained else 0.0,
                "gradient_steps": 600 if trained else 0,
                "tokens": 240_000 if trained else 0,
            },
            "tasks": content["tasks"], "mean": content["mean"], "pooled": content["pooled"],
            "predictions": [f"{key}/evaluation/predictions.jsonl"], "run": key if trained else None,
        }  # fmt: skip
    comparison = {
        "format": "abmll-comparison-2", "suite": "bigbench-demo", "seeds": [0], "settings": SETTINGS,
        "versions": VERSIONS, "methods": cells, "reference": None, "missing": [], "known_leaks": [], "commits": [],
        "failures": [],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(comparison, allow_nan=False), encoding="utf-8")
    return comparison


def write_all(root: Path) -> None:
    """Every kind of folder under `root`."""
    write_comparison(root / "comparison")
    write_run(root / "run")
    write_evaluation(root / "run" / "evaluation")
    write_run(root / "training-only")
    write_evaluation(root / "evaluation")


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """The folders of `write_all`, each with its report.html; tests read them only."""
    root = tmp_path_factory.mktemp("reports")
    write_all(root)
    for folder in sorted(root.iterdir()):
        write_report(folder)
    return root


@pytest.fixture
def point():
    """Makes a point of a curve over a setting, as comparison.json has it."""
    return write_point


def write_point(value, level, error=0.01):
    mean = {"accuracy": 0.5 + level, "nll": 1 - level, "ece": level + 0.05}
    return {"value": value, "mean": mean, "mean_errors": dict.fromkeys(mean, error), "pooled_ece": level}


@pytest.fixture
def make():
    """The generators, for tests that need a folder of their own."""
    return SimpleNamespace(run=write_run, evaluation=write_evaluation, comparison=write_comparison)
