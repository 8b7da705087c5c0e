"""The cells of a comparison, and which of them belong into one process one after the other."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from abmll.common.config import (
    PLACES,
    AdapterConfig,
    EvaluateConfig,
    LearningConfig,
    ModelConfig,
    PredictConfig,
    PromptConfig,
)
from abmll.common.errors import ConfigError
from abmll.common.settings import flatten
from abmll.experiments.budget import CURVES
from abmll.experiments.cells import Cell, Training, digest
from abmll.experiments.method_spec import ComparisonConfig, Settings, Spec
from abmll.methods import find_rule
from abmll.tasks import Suite, Task


def plan(suite: Suite, config: ComparisonConfig) -> list[Cell]:
    """Every cell, seed by seed, so that a comparison that is stopped early has whole seeds."""
    train, evaluation = _sha256(suite.train, "train"), _sha256(suite.evaluation, "train", "test")
    cells = []
    for seed, spec in product(config.seeds, config.specs):
        values = _settings(spec, suite, config)
        _refuse_unfit(spec, suite, values["model"])
        training = _training(spec, seed, suite, config, train)
        main = main_point(values)
        for settings in _variants(spec, values, main):
            is_main = all(settings[name] == value for name, value in main.items())
            cells.append(Cell(suite.name, spec, seed, settings, evaluation, training, is_main))
    return cells


def units(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in groups that can be computed at the same time: those of one training run stay together."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.hash if cell.training is None else cell.training.name, []).append(cell)
    return list(groups.values())


def main_point(values: Settings) -> dict[str, Any]:
    """Of the values that make curves, those that the tables are of: the usual one, or else the one that costs most."""
    choices = {  # the usual one, and which one costs most
        "adapt_examples": (values["usual_examples"], max),
        "num_samples": (PredictConfig.num_samples, max),
        "prune": (0.0, min),
        "episodes": (values["max_steps"], max),
    }
    own = {name: _tuple(values[name]) for name in choices}
    return {name: usual if usual in own[name] else costliest(own[name]) for name, (usual, costliest) in choices.items()}


def _settings(spec: Spec, suite: Suite, config: ComparisonConfig) -> dict[str, Any]:
    """The method's settings, with ``episodes`` as those evaluated and the suite's own ``usual_examples``."""
    named = {"adapt_examples": suite.adapt_examples, "test_examples": suite.test_examples}
    caps = {key: value for key, value in named.items() if value is not None}
    values = config.settings_of(spec, suite.prompt | caps)
    episodes = evaluated_episodes(values["episodes"] or (), values["max_steps"], values["save_steps"])
    return values | {"usual_examples": suite.adapt_examples or EvaluateConfig.adapt_examples, "episodes": episodes}


def evaluated_episodes(episodes: Sequence[int], max_steps: int, save_steps: int) -> tuple[int, ...]:
    """The episodes after which a run is evaluated, its end among them. Raises ``ConfigError`` where nothing is kept."""
    for episode in episodes:
        if episode > max_steps or (episode % save_steps and episode != max_steps):
            raise ConfigError(
                f"episodes is {episode}, after which no checkpoint is written; use multiples of save_steps = "
                f"{save_steps} up to max_steps = {max_steps}"
            )
    return tuple(sorted({*episodes, max_steps}))


def _refuse_unfit(spec: Spec, suite: Suite, model: str) -> None:
    """Raise ``ConfigError`` where a theta that comes with the package is another model's, or has learned tasks that
    count as unseen here."""
    if spec.shipped is None:
        return
    own, learned = spec.shipped.document["settings"]["model"], spec.shipped.document["tasks"]
    if model != own:
        raise ConfigError(f"methods: the theta of {spec.key} belongs to {own}, not to {model}; leave it out")
    if seen := sorted({task.name for task in suite.evaluation} & set(learned)):
        raise ConfigError(
            f"methods: the theta of {spec.key} was trained on {len(seen)} of the unseen tasks of {suite.name} "
            f"({', '.join(seen[:3])}{', ...' if len(seen) > 3 else ''}); leave it out"
        )


def _variants(spec: Spec, values: Settings, main: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings at the tables' point and along each curve, where one setting varies; each recalibrated or not."""
    rule = find_rule(spec.method)
    nothing_varies = {
        "num_samples": not rule.is_posterior,
        "episodes": spec.shipped is not None or (not rule.is_trained and rule.base_method is None),
    }
    points = [dict(main)]
    for name in CURVES:
        if not nothing_varies.get(name):
            points += [{**main, name: value} for value in _tuple(values[name]) if value != main[name]]
    fixed = {key: value for key, value in values.items() if key not in ("usual_examples", "seed")}
    kinds = _tuple(values["recalibrate"])
    if rule.has_calibration and values["use_calibration"] and values["calibration_tasks"]:
        kinds = dict.fromkeys("none" if kind == "calibration" else kind for kind in kinds)  # it has it anyway
    return [fixed | chosen | {"recalibrate": recalibrate} for recalibrate in kinds for chosen in points]


def _training(spec: Spec, seed: int, suite: Suite, config: ComparisonConfig, data: str) -> Training | None:
    """The run that the method starts from, which may be another one's; None where nothing is trained."""
    trained = spec.base or spec
    if spec.shipped is not None or not find_rule(trained.method).is_trained:
        return None
    values = _settings(trained, suite, config)
    names = flatten(ModelConfig(), AdapterConfig(), PromptConfig(), LearningConfig()).keys() - {"seed", *PLACES}
    names = (*names, "max_steps", "save_steps", "save_total_limit", "activation_cache_gb", "limit_train")
    kept = {name: values[name] for name in names}
    return Training(trained.method, seed, kept, data, kept_episodes=values["episodes"])


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _sha256(tasks: Sequence[Task], *sides: str) -> str:
    """A hash of the names and of the examples on those sides, in order."""
    hashed = hashlib.sha256()
    for task, side in product(tasks, sides):
        rows = [[one.id, one.input, one.options, one.answer] for one in getattr(task, side)]
        hashed.update(digest([task.name, side, rows]).encode())
    return hashed.hexdigest()[:12]
