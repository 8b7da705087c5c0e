"""The temperature of a cell: none, one a task from its adaptation examples, or one for all from the training tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from abmll.common.config import EvaluateConfig
from abmll.experiments.temperature import adaptation_temperature, meta_temperature, tempered
from abmll.language.activation_cache import ActivationCache
from abmll.model.meta_learner import AbmllModel
from abmll.model.prediction import Prediction
from abmll.tasks import Example, Task
from abmll.tasks.order import permutation

META_QUESTIONS = 30  # of each training task, on which one temperature for all is fitted


@dataclass
class Recalibration:
    """What becomes of a cell's predictions; ``temperatures`` are those used, by task or under ``all``."""

    kind: str
    model: AbmllModel
    settings: EvaluateConfig
    training_tasks: Sequence[Task]
    seed: int
    cache: ActivationCache | None
    temperatures: dict[str, float] = field(default_factory=dict)

    def of_task(self, name: str, support: Sequence[Example]) -> Callable[[Prediction], Prediction]:
        """What becomes of the predictions of a task that was adapted to ``support``."""
        if self.kind in ("none", "calibration"):  # the calibration is a part of the prediction
            return lambda prediction: prediction
        if self.kind == "meta":
            self.temperatures["all"] = self._meta
            return partial(tempered, temperature=self._meta)
        how, seed, cache = self.settings, self.seed, self.cache
        temperature = adaptation_temperature(
            self.model, support, task_name=name, adapt=how, how=how, seed=seed, cache=cache
        )
        self.temperatures[name] = temperature
        return partial(tempered, temperature=temperature)

    @cached_property
    def _meta(self) -> float:
        """Fitted after adapting to training examples of every training task, on test examples that no run has read."""
        tasks = {task.name: self._sides(task) for task in self.training_tasks if len(task.train) and len(task.test)}
        return meta_temperature(
            self.model, tasks, adapt=self.settings, how=self.settings, seed=self.seed, cache=self.cache
        )

    def _sides(self, task: Task) -> tuple[Sequence[Example], Sequence[Example]]:
        limits = {"train": self.settings.adapt_examples, "test": META_QUESTIONS}
        sides = {}
        for side, limit in limits.items():
            examples = getattr(task, side)
            sides[side] = [examples[i] for i in permutation(len(examples), self.seed, "temperature", side)[:limit]]
        return sides["train"], sides["test"]
