"""ABMLL's calibration where a cell asks for it and its model has none: another method's, or a theta's from midway."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from abmll.common.config import AdaptConfig, ContinuedConfig, EvaluateConfig, LearningConfig, PredictConfig
from abmll.common.settings import flatten, pick
from abmll.experiments.cells import Cell
from abmll.language.activation_cache import ActivationCache
from abmll.language.meter import counted
from abmll.methods import find_rule, settings_method
from abmll.model.meta_learner import AbmllModel
from abmll.posterior.calibration import CalibrationPrior
from abmll.tasks import Task
from abmll.training.empirical_bayes import learn_calibration_prior


class CalibrationPriors:
    """Learns each prior once, for all cells that differ in what it does not depend on."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.known: dict[str, tuple[CalibrationPrior, dict[str, float]]] = {}

    def add(
        self,
        model: AbmllModel,
        cell: Cell,
        config: EvaluateConfig,
        tasks: Callable[[], Sequence[Task]],
        cache: ActivationCache | None,
    ) -> dict[str, float]:
        """Leave in the model the prior that the cell asks for; returns what learning it took, by kind of cost."""
        learning = pick(LearningConfig, cell.settings)
        has_own = find_rule(cell.spec.method).has_calibration and config.use_calibration and learning.calibration_tasks
        if model.calibration_prior is not None or not (has_own or cell.settings["recalibrate"] == "calibration"):
            return {}
        key = _key(cell, config)
        if key not in self.known:
            # a method that takes over another one's calibration learns it with that other one
            teacher = copy.copy(model)
            teacher.learning = replace(model.learning, method=settings_method(model.learning.method))
            with counted(model.scorer) as cost:
                prior = learn_calibration_prior(
                    teacher,
                    tasks(),
                    num_tasks=learning.calibration_tasks or LearningConfig.calibration_tasks,
                    num_examples=learning.calibration_examples,
                    how=config,
                    seed=cell.seed,
                    cache=cache,
                    quiet=self.quiet,
                )
            spent = cost.of_run()
            self.known[key] = prior, {"gradient_steps": spent.pop("steps"), **spent}
        model.calibration_prior, spent = self.known[key]
        return spent


def _key(cell: Cell, config: EvaluateConfig) -> str:
    """What a prior depends on: theta, how its teacher learns a task, and how the answers are predicted."""
    trained = [] if cell.training is None else [cell.training.name, cell.settings["episodes"]]
    rule = find_rule(settings_method(cell.spec.method))
    learning: type[LearningConfig] = LearningConfig if rule.base_method is None else ContinuedConfig
    teacher = dict(cell.settings) | {"method": rule.name}
    learned = flatten(pick(learning, teacher), pick(AdaptConfig, teacher))
    return json.dumps([cell.spec.preset, cell.seed, trained, learned, flatten(pick(PredictConfig, flatten(config)))])
