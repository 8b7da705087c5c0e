"""Readouts that a cell asks for and its model has not: lent to another method, or of a theta from midway."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from abmll.experiments.cells import Cell
from abmll.common.config import AdaptConfig, ContinuedConfig, EvaluateConfig, LearningConfig, PredictConfig
from abmll.language.activation_cache import TrunkCache
from abmll.language.meter import counted
from abmll.methods import find_rule, kin
from abmll.model.meta_learner import AbmllModel
from abmll.posterior.calibration import ReadoutPrior
from abmll.common.settings import flatten, pick
from abmll.tasks.task import Task
from abmll.training.empirical_bayes import learn_readout


class Readouts:
    """Learns each prior once, for all cells that differ in what it does not depend on."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.known: dict[str, tuple[ReadoutPrior, dict[str, float]]] = {}

    def give(
        self,
        model: AbmllModel,
        cell: Cell,
        settings: EvaluateConfig,
        tasks: Callable[[], Sequence[Task]],
        cache: TrunkCache | None,
    ) -> dict[str, float]:
        """Leave the readout in the model; returns what it took to learn, by kind, nothing where none was asked for."""
        learning = pick(LearningConfig, cell.settings)
        own = find_rule(cell.spec.method).has_readout and settings.readout and learning.readout_tasks > 0
        if model.readout is not None or not (own or cell.settings["recalibrate"] == "readout"):
            return {}
        key = _key(cell, settings)
        if key not in self.known:
            with counted(model.scorer) as cost:
                prior = learn_readout(
                    _teacher(model),
                    tasks(),
                    num_tasks=learning.readout_tasks or LearningConfig.readout_tasks,
                    num_examples=learning.readout_examples,
                    how=settings,
                    seed=cell.seed,
                    cache=cache,
                    quiet=self.quiet,
                )
            spent = cost.of_run()
            self.known[key] = prior, {"gradient_steps": spent.pop("steps"), **spent}
        model.readout, spent = self.known[key]
        return spent


def _teacher(model: AbmllModel) -> AbmllModel:
    """The model that a prior is learned with: for a method that takes over another one's readout, that other one."""
    teacher = copy.copy(model)
    teacher.learning = replace(model.learning, method=kin(model.learning.method))
    return teacher


def _key(cell: Cell, settings: EvaluateConfig) -> str:
    """What a prior depends on: theta, how its teacher learns a task, and how the answers are predicted."""
    trained = [] if cell.training is None else [cell.training.name, cell.settings["visits"]]
    rule = find_rule(kin(cell.spec.method))
    learning: type[LearningConfig] = LearningConfig if rule.continues is None else ContinuedConfig
    teacher = dict(cell.settings) | {"method": rule.name}
    learned = flatten(pick(learning, teacher), pick(AdaptConfig, teacher))
    return json.dumps([cell.spec.preset, cell.seed, trained, learned, flatten(pick(PredictConfig, flatten(settings)))])
