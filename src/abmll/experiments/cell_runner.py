"""Computing a cell: train or find its run, adapt to the unseen tasks, measure, write the result.

A runner keeps what several cells share: the frozen model, the tasks, one scorer for every form of adapter and
prompt, and the activations below the lowest adapted layer.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from abmll.common.config import (
    ActivationCacheConfig,
    AdapterConfig,
    ContinuedConfig,
    EvaluateConfig,
    LearningConfig,
    ModelConfig,
    PromptConfig,
    TrainConfig,
)
from abmll.common.documents import Document
from abmll.common.errors import AbmllError, TrainingError
from abmll.common.locks import sole_writer
from abmll.common.settings import flatten, pick
from abmll.experiments.added_calibration import CalibrationPriors
from abmll.experiments.cells import Cell, Training, save_cell
from abmll.experiments.few_shot import AdaptedTask, adapt_to_tasks, commit, measure, versions
from abmll.experiments.out_of_distribution import mean_separation, ood_questions, separation
from abmll.experiments.pruning import pruned
from abmll.experiments.temperature import meta_temperature, tempered
from abmll.experiments.trained import cost_of_run, no_cost, recall, train_once
from abmll.experiments.written_tasks import refuse_written_tasks
from abmll.language.activation_cache import ActivationCache, open_cache
from abmll.language.base import Base, load_base
from abmll.language.meter import metered
from abmll.methods import find_rule
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import Prediction
from abmll.posterior.hypotheses import HeadPrior
from abmll.tasks import Task
from abmll.tasks.evaluation_examples import choose_examples
from abmll.tasks.order import limit_train, sample_seed
from abmll.tasks.suite import Suite, load_suite
from abmll.training.head_prior import learn_head_prior


@dataclass(frozen=True)
class ResultFolder:
    """Where a comparison lies and what it is of, in a form that another process can be given."""

    folder: Path
    suite: str
    base: ModelConfig
    activations: ActivationCacheConfig
    command: str
    data_dir: Path | None = None
    allow_missing: bool = False
    validation: bool = False  # the validation tasks take the place of the evaluation tasks

    def load_suite(self) -> Suite:
        """The suite, checked for leaks. Raises ``DataError`` as ``load_suite`` and ``refuse_leaks``."""
        suite = load_suite(self.suite, self.data_dir, allow_missing=self.allow_missing)
        suite = suite.for_tuning() if self.validation else suite
        suite.refuse_leaks()
        refuse_written_tasks([*suite.train, *suite.evaluation], "comparisons need options; use abmll evaluate")
        return suite


class CellRunner:
    """Computes cells of one comparison, one after the other."""

    def __init__(self, results: ResultFolder, say: Callable[[str], None], quiet: bool) -> None:
        self.results = results
        self.say = say
        self.quiet = quiet
        self.models: dict[str, AbmllModel] = {}
        self.caches: dict[str, ActivationCache | None] = {}
        self.failed: dict[str, str] = {}  # training runs that could not be finished, and why
        self.head_priors: dict[str, HeadPrior] = {}
        self.calibrations = CalibrationPriors(quiet)
        self.limited: tuple[tuple[int | None, int], Sequence[Task]] | None = None

    @cached_property
    def base(self) -> Base:
        """The frozen model, loaded once; every scorer works on a twin of it."""
        return load_base(self.results.base, self.say, self.quiet)

    @cached_property
    def suite(self) -> Suite:
        """The tasks, read once."""
        return self.results.load_suite()

    def compute_all(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Compute the cells; returns the error of each that could not be, by its hash."""
        errors = {}
        for cell in cells:
            try:
                self.compute(cell)
            except AbmllError as error:
                errors[cell.hash] = str(error)
        return errors

    def compute(self, cell: Cell) -> None:
        """Write the result of a cell, unless it is there, or will be: what another process does is waited for."""
        path = cell.path(self.results.folder)
        if path.exists():
            return
        # A job may still work for a command that was killed; of one training run it does all cells.
        place = path if cell.training is None else self.run_folder(cell.training)
        with sole_writer(place, patience=math.inf):
            if not path.exists():
                self._compute(cell, path)

    def _compute(self, cell: Cell, path: Path) -> None:
        model, training_cost = self.learned(cell)
        config = pick(EvaluateConfig, cell.settings)
        if cell.settings["recalibrate"] == "calibration":
            config = replace(config, use_calibration=True)
        cache = self.cache(model, cell.settings)
        added = self.calibrations.add(model, cell, config, lambda: self.tasks_of(cell.settings, cell.seed), cache)
        for kind, more in added.items():
            training_cost[kind] = (training_cost[kind] or 0) + more
        with metered(model.scorer) as cost:
            results, studies = self._evaluate(model, cell, config, cache)
        evaluation, prior = measure(results), model.calibration_prior
        document = {
            **cell.description(),
            "versions": versions(),
            "commit": commit(),
            "command": self.results.command,
            "missing": list(self.suite.missing),
            "known_leaks": list(self.suite.known_leaks),
            "base_fingerprint": self.base.fingerprint,
            "cost": {"training": training_cost, "evaluation": asdict(cost)},
            "calibration": prior and {**asdict(prior), "inverse_temperatures": evaluation.inverse_temperatures},
            "truncated_prompts": evaluation.truncated,
            "demonstrations_left_out": evaluation.left_out,
            "tasks": evaluation.tasks,
            "mean": evaluation.mean,
            "pooled": evaluation.pooled,
            **studies,
        }
        save_cell(path, document, evaluation.predictions)

    def _evaluate(
        self, model: AbmllModel, cell: Cell, config: EvaluateConfig, cache: ActivationCache | None
    ) -> tuple[list[tuple[AdaptedTask, Prediction]], Document]:
        """Adapt to the unseen tasks and predict, pruned and recalibrated as the cell says; also what that has shown."""
        how: dict[str, Any] = {"seed": cell.seed, "cache": cache}
        is_meta = cell.settings["recalibrate"] == "meta"
        temperature = meta_temperature(model, self.suite.train, config, **how) if is_meta else None
        tasks, results, separations = self.suite.evaluation, [], {}
        questions = {task.name: choose_examples(task, config, cell.seed)[1] for task in tasks}
        others = ood_questions(tasks, questions, cell.settings["ood_examples"])
        for task in adapt_to_tasks(model, tasks, config, quiet=self.quiet, **how):
            with pruned(model.scorer, cell.settings["prune"]):
                prediction = task.predict()
                doubted = task.predict(others[task.name]) if others[task.name] else None
            if temperature is not None:
                prediction = tempered(prediction, temperature)
                doubted = doubted and tempered(doubted, temperature)
            if doubted is not None:
                separations[task.name] = separation(prediction, doubted)
            results.append((task, prediction))
        return results, {
            "temperatures": {} if temperature is None else {"all": temperature},
            "out_of_distribution": {"tasks": separations, "mean": mean_separation(separations)},
        }

    def learned(self, cell: Cell) -> tuple[AbmllModel, dict[str, float | None]]:
        """The model with the theta from which the cell's method meets an unseen task, and what that theta has cost."""
        learning = pick(ContinuedConfig, dict(cell.settings) | {"seed": cell.seed})
        shipped = cell.spec.shipped
        if shipped is not None:
            model = self.model(cell.settings)
            shipped.load_into(model)
            return self._with_head(model, cell), no_cost()
        if cell.training is None:
            model = self.model(cell.settings)
            fresh = model.scorer.new_adapter(sample_seed(cell.seed, "init"))
            model.learned(fresh, learning, len(self.suite.train))
            return self._with_head(model, cell), no_cost()
        model, cost = self._train(cell.training, cell.settings["episodes"])
        if find_rule(cell.spec.method).base_method is not None:
            own = flatten(learning)
            model = model.continue_as(own.pop("method"), **own)
        return self._with_head(model, cell), cost

    def _with_head(self, model: AbmllModel, cell: Cell) -> AbmllModel:
        """The model with the head's prior that its method has: learned from the training tasks, or the default."""
        model.head_prior = HeadPrior()
        if find_rule(cell.spec.method).learns_head_prior:
            trained = None if cell.training is None else [cell.training.name, cell.settings["episodes"]]
            sizes = {
                "num_tasks": cell.settings["calibration_tasks"] or LearningConfig.calibration_tasks,
                "num_examples": cell.settings["calibration_examples"],
            }
            key = json.dumps([trained, sizes, cell.seed, flatten(model.scorer.prompt), cell.settings["limit_train"]])
            if key not in self.head_priors:
                tasks = self.tasks_of(cell.settings, cell.seed)
                self.head_priors[key] = learn_head_prior(
                    model, tasks, **sizes, seed=cell.seed, cache=self.cache(model, cell.settings), quiet=self.quiet
                )
            model.head_prior = self.head_priors[key]
        return model

    def _train(self, training: Training, episodes: int) -> tuple[AbmllModel, dict[str, float | None]]:
        """The model with the theta of a run after so many episodes, and what these have cost."""
        if training.name in self.failed:
            raise TrainingError(self.failed[training.name])
        folder = self.run_folder(training)
        settings = dict(training.settings) | flatten(self.results.activations)
        settings |= {"seed": training.seed, "method": training.method, "output_dir": str(folder)}
        if len(training.kept_episodes) > 1:
            settings["save_total_limit"] = settings["max_steps"]  # all of them
        config = pick(TrainConfig, settings)
        model, tasks = self.model(settings), self.tasks_of(settings, training.seed)
        try:
            train_once(model, tasks, config, self.cache(model, settings), self.quiet, training.kept_episodes)
            if episodes != config.max_steps and not recall(model, config, len(tasks), episodes):
                raise TrainingError(f"{folder}: has no checkpoint after episode {episodes}; delete the folder")
            return model, cost_of_run(folder, episodes)
        except AbmllError as error:
            self.failed[training.name] = str(error)
            raise

    def run_folder(self, training: Training) -> Path:
        """Where a training run lies."""
        return self.results.folder / "runs" / training.name

    def tasks_of(self, settings: Mapping[str, Any], seed: int) -> Sequence[Task]:
        """The training tasks, each with at most ``limit_train`` training examples; the last choice of them is kept."""
        key = settings["limit_train"], seed
        if self.limited is None or self.limited[0] != key:
            self.limited = key, [limit_train(task, *key) for task in self.suite.train]
        return self.limited[1]

    def model(self, settings: Mapping[str, Any]) -> AbmllModel:
        """The model with adapters and prompts of these settings; its theta is whatever was last learned in it."""
        adapter, prompt = pick(AdapterConfig, settings), pick(PromptConfig, settings)
        key = json.dumps(flatten(adapter, prompt), sort_keys=True)
        if key not in self.models:
            self.models[key] = AbmllModel(self.base.twin(), adapter, prompt)
        return self.models[key]

    def cache(self, model: AbmllModel, settings: Mapping[str, Any]) -> ActivationCache | None:
        """Kept activations, shared by all models that compute the same ones."""
        scorer = model.scorer
        key = json.dumps([len(scorer.lower_blocks.blocks), scorer.packed, flatten(scorer.prompt)])
        if key not in self.caches:
            self.caches[key] = open_cache(
                scorer.base, scorer.lower_blocks, self.results.activations, settings["activation_cache_gb"], self.say
            )
        return self.caches[key]
