"""The cells of a comparison, and which of them belong into one process one after the other."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from abmll.common.config import AdapterConfig, EvaluateConfig, LearningConfig, ModelConfig, PredictConfig, PromptConfig
from abmll.common.errors import ConfigError
from abmll.common.settings import flatten
from abmll.experiments.budget import CURVES
from abmll.experiments.cells import Cell, Training, digest
from abmll.experiments.method_spec import Spec, resolve
from abmll.methods import find_rule
from abmll.tasks import Example, Task
from abmll.tasks.suite import Suite


@dataclass(frozen=True)
class ComparisonConfig:
    """What a comparison is made of.

    ``shared`` has a value for every setting, with a tuple of values for those that make curves or rows; ``tuned``,
    ``asked`` and ``own`` are those of ``resolve``.
    """

    specs: Sequence[Spec]
    seeds: Sequence[int]
    shared: Mapping[str, Any]
    tuned: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]


def plan(suite: Suite, wanted: ComparisonConfig) -> list[Cell]:
    """Every cell, seed by seed, so that a comparison that is stopped early has whole seeds."""
    train, evaluation = _sha256(suite.train, "train"), _sha256(suite.evaluation, "train", "test")
    cells = []
    for seed, spec in product(wanted.seeds, wanted.specs):
        values = _settings(spec, suite, wanted)
        training = _training(spec, seed, suite, wanted, train)
        point = main_point(values)
        for settings in _variants(spec, values, point):
            is_main = all(settings[name] == value for name, value in point.items())
            cells.append(Cell(suite.name, spec, seed, settings, evaluation, training, is_main))
    return cells


def units(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in groups that can be worked on at the same time: those of one training run stay together."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.hash if cell.training is None else cell.training.name, []).append(cell)
    return list(groups.values())


def main_point(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values that make curves, those that the tables are of: the usual one, or else the one that costs most."""
    usual = {"adapt_examples": values["usual_examples"], "num_samples": PredictConfig.num_samples, "prune": 0.0}
    usual["episodes"] = values["max_steps"]
    own = {name: _tuple(values[name]) for name in CURVES}
    costly = {"adapt_examples": max, "num_samples": max, "prune": min, "episodes": max}
    return {name: usual[name] if usual[name] in own[name] else costly[name](own[name]) for name in CURVES}


def _settings(spec: Spec, suite: Suite, wanted: ComparisonConfig) -> dict[str, Any]:
    named = {"adapt_examples": suite.adapt_examples, "test_examples": suite.test_examples}
    caps = {key: value for key, value in named.items() if value is not None}
    values = resolve(spec, wanted.shared, suite.prompt | caps, wanted.tuned, wanted.asked, wanted.own)
    episodes = evaluated_episodes(values["episodes"] or (), values["max_steps"], values["save_steps"])
    return values | {"usual_examples": suite.adapt_examples or EvaluateConfig.adapt_examples, "episodes": episodes}


def evaluated_episodes(episodes: Sequence[int], max_steps: int, save_steps: int) -> tuple[int, ...]:
    """The episodes after which a run is evaluated, its end among them. Raises ``ConfigError`` where nothing is kept."""
    for episode in episodes:
        if episode > max_steps or (episode % save_steps and episode != max_steps):
            raise ConfigError(
                f"episodes is {episode}, after which no checkpoint is written; use multiples of save_steps = {save_steps} "
                f"up to max_steps = {max_steps}"
            )
    return tuple(sorted({*episodes, max_steps}))


def _variants(spec: Spec, values: Mapping[str, Any], point: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings at the tables' point and along each curve, where one setting varies; each recalibrated or not."""
    points = [dict(point)]
    for name in CURVES:
        rule = find_rule(spec.method)
        if name == "num_samples" and not rule.is_posterior:
            continue  # nothing is sampled
        if name == "episodes" and not rule.is_trained and rule.base_method is None:
            continue  # nothing is trained
        points += [{**point, name: value} for value in _tuple(values[name]) if value != point[name]]
    fixed = {key: value for key, value in values.items() if key not in ("usual_examples", "seed")}
    kinds = _tuple(values["recalibrate"])
    if find_rule(spec.method).has_calibration and values["use_calibration"] and values["calibration_tasks"]:
        kinds = dict.fromkeys("none" if kind == "calibration" else kind for kind in kinds)  # it is there
    return [fixed | chosen | {"recalibrate": recalibrate} for recalibrate in kinds for chosen in points]


def _training(spec: Spec, seed: int, suite: Suite, wanted: ComparisonConfig, data: str) -> Training | None:
    """The run that the method starts from, which may be another one's; None where nothing is trained."""
    rule = find_rule(spec.method)
    if rule.base_method is None and not rule.is_trained:
        return None
    trained = spec if rule.base_method is None else Spec(rule.base_method, spec.preset)
    values = _settings(trained, suite, wanted)
    names = flatten(ModelConfig(), AdapterConfig(), PromptConfig(), LearningConfig()).keys() - {"seed", "device"}
    names = (*names, "max_steps", "save_steps", "save_total_limit", "activation_cache_gb", "limit_train")
    kept = {name: values[name] for name in names}
    return Training(trained.method, seed, kept, data, kept_episodes=values["episodes"])


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _sha256(tasks: Sequence[Task], *sides: str) -> str:
    """A hash of the names and of the examples on those sides, in order."""
    hashed = hashlib.sha256()
    for task in tasks:
        for side in sides:
            rows = [_content(example) for example in getattr(task, side)]
            hashed.update(digest([task.name, side, rows]).encode())
    return hashed.hexdigest()[:12]


def _content(example: Example) -> list[Any]:
    return [example.id, example.input, example.options, example.answer]
