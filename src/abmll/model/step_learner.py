"""How a task is learned by gradient steps, from theta or from a fresh adapter (arXiv 2508.14285, algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abmll.common.config import ActivationCacheConfig, AdaptConfig, LearningConfig
from abmll.common.errors import TrainingError
from abmll.common.progress import progress
from abmll.common.settings import flatten
from abmll.language.activation_cache import ActivationCache, open_cache
from abmll.language.adapter import Adapter
from abmll.language.scorer import OptionScorer
from abmll.methods import Support, make_rule
from abmll.model.learned_task import TaskPosterior
from abmll.model.prequential import TaskCalibration, evidence, infer_calibration, labels_of
from abmll.posterior.calibration import CalibrationPrior, before_examples
from abmll.tasks import Example
from abmll.tasks.order import demonstrations
from abmll.tasks.types import are_written
from abmll.tasks.written import WRITTEN


@dataclass(frozen=True)
class StepLearner:
    """A learning rule's settings, and where a task starts; ``num_tasks`` are those that theta was learned from."""

    scorer: OptionScorer
    learning: LearningConfig
    num_tasks: int
    start: Adapter
    calibration_prior: CalibrationPrior | None = None

    def learn(
        self,
        examples: Sequence[Example],
        task_name: str,
        budget: AdaptConfig,
        seed: int,
        *,
        cache: ActivationCache | None = None,
        quiet: bool = True,
        on_step: Callable[[int], object] = lambda total: None,
    ) -> TaskPosterior:
        """The task's posterior after ``budget.steps`` steps.

        ``on_step`` is called after every one, with the number of them all; what it raises ends the learning. Raises
        ``TrainingError`` where a loss term is not finite.
        """
        rule, written = make_rule(self.scorer, self.learning, self.num_tasks), are_written(examples)
        shown = self.learning.num_demonstrations if rule.demonstrations else 0
        encoded = self.scorer.encode(examples, task_name)
        support = Support(
            self.scorer, encoded, budget.steps, budget.batch_size, seed, examples, task_name, shown, cache
        )
        total = rule.num_batches(support)
        if cache is None and not shown and total * min(budget.batch_size, len(examples)) >= 2 * len(examples):
            support.cache = open_cache(self.scorer.base, self.scorer.lower_blocks, ActivationCacheConfig())
        with progress(total, f"adapting to {task_name}", "step", quiet=quiet) as bar:

            def on_batch() -> None:
                bar.update()
                on_step(total)

            support.on_batch = on_batch
            try:
                members = rule.adapt(self.start, support)
            except TrainingError as error:
                raise TrainingError(f"adapting to '{task_name}', {error}") from error
        adapted = {
            "adapt_steps": budget.steps,
            "adapt_batch_size": budget.batch_size,
            "adapt_examples": len(examples),
            "adapt_seed": seed,
        }
        settings = flatten(self.learning) | adapted | ({WRITTEN: True} if written else {})
        if self.scorer.compilation is not None:
            settings["adapt_compile"] = True
        chosen = tuple(examples[index] for index in demonstrations(seed, len(examples), shown, ()))
        prequential = evidence(examples, support.answers())
        calibration = None
        if self.calibration_prior is not None and not written:
            calibration = infer_calibration(self.calibration_prior, examples, prequential)
        return TaskPosterior(
            self.scorer,
            members,
            task_name,
            rule.is_posterior,
            settings,
            chosen,
            calibration,
            prequential,
            labels=labels_of(examples),
        )

    def at_start(self, task_name: str) -> TaskPosterior:
        """The start itself in the role of the task's posterior."""
        rule = make_rule(self.scorer, self.learning, self.num_tasks)
        calibration = None
        if self.calibration_prior is not None:
            calibration = TaskCalibration(before_examples(self.calibration_prior).points)
        settings = flatten(self.learning)
        return TaskPosterior(self.scorer, (self.start,), task_name, rule.is_posterior, settings, (), calibration)
