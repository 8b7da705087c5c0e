"""How many episodes and questions of a comparison fit into a given time: a little is timed, the rest is counted.

All is measured with the first ABMLL cell. Activations below the adapters are computed by whichever method reads an
example first and kept for the others, so a task is timed twice: reading is what the first time takes longer.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from abmll.common.config import EvaluateConfig
from abmll.common.settings import pick
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import Cell
from abmll.experiments.few_shot import AdaptedTask, adapt_to_tasks
from abmll.methods import find_rule
from abmll.tasks import Suite
from abmll.training.empirical_bayes import SAMPLES

EPISODES, STEPS, QUESTIONS = 2, 1, 1  # timed: of training, of an adaptation to each task, and asked of each task
FLOOR = {"max_steps": 6, "test_examples": 10}  # below, the numbers say nothing


@dataclass(frozen=True)
class Pace:
    """Seconds on one machine."""

    episode: float
    adaptation: float  # the gradient steps to one task
    question: float  # one pass over one question
    reading_task: float  # the examples that a task is adapted to, once
    reading_question: float


@dataclass(frozen=True)
class Work:
    """Seconds of a comparison: those that do not depend on its size, and those of every episode and question a task."""

    fixed: float
    episode: float
    question: float

    def seconds(self, size: Mapping[str, int]) -> float:
        """Of ``max_steps`` episodes and ``test_examples`` questions a task."""
        return self.fixed + size["max_steps"] * self.episode + size["test_examples"] * self.question


def measure_pace(cells: Sequence[Cell], results: ResultFolder, say: Callable[[str], None]) -> Pace:
    """Train for a few episodes, then adapt to every unseen task and ask it a few questions, twice."""
    cell = next(cell for cell in cells if cell.spec.method == "abmll")
    assert cell.training is not None
    short = {"max_steps": EPISODES, "save_steps": EPISODES, "calibration_tasks": 0}
    training = replace(cell.training, settings={**cell.training.settings, **short}, kept_episodes=())
    few = {"steps": STEPS, "adapt_examples": 2 * STEPS, "test_examples": QUESTIONS}
    config = replace(pick(EvaluateConfig, cell.settings), **few)
    with tempfile.TemporaryDirectory() as folder:
        runner = CellRunner(replace(results, folder=Path(folder)), say, quiet=True)
        settings = {**cell.settings, **short, "episodes": EPISODES}
        model, cost = runner.learned(replace(cell, training=training, settings=settings))
        how: dict[str, Any] = {"seed": cell.seed, "cache": runner.cache(model, cell.settings)}
        times = [_seconds_a_task(adapt_to_tasks(model, runner.suite.evaluation, config, **how)) for _ in range(2)]
    (adapting, asking), (adapting_again, asking_again) = times
    return Pace(
        episode=(cost["seconds"] or 0) / EPISODES,
        adaptation=adapting_again * cell.settings["steps"] / STEPS,
        question=asking_again / max(config.num_samples, 1),
        reading_task=max(adapting - adapting_again, 0) * cell.settings["adapt_examples"] / few["adapt_examples"],
        reading_question=max(asking - asking_again, 0),
    )


def _seconds_a_task(tasks: Iterator[AdaptedTask]) -> tuple[float, float]:
    """Of adapting to a task, and of asking it one question, on average over the tasks."""
    adapting, asking, started = [], [], time.perf_counter()
    for task in tasks:
        adapted = time.perf_counter()
        task.predict()
        ended = time.perf_counter()
        adapting.append(adapted - started)
        asking.append((ended - adapted) / len(task.questions))
        started = ended
    return fmean(adapting), fmean(asking)


def count_work(cells: Sequence[Cell], suite: Suite, pace: Pace) -> Work:
    """What the cells, all of one budget, take at a pace."""
    settings, rules = cells[0].settings, [find_rule(cell.spec.method) for cell in cells]
    components = [settings["ensemble_size"] if rule.name == "abmll-mixture" else 1 for rule in rules]
    samples = [settings["num_samples"] if rule.is_posterior else 1 for rule in rules]
    passes = sum(max(pair) for pair in zip(components, samples, strict=True))
    fixed = len(suite.evaluation) * (pace.reading_task + sum(components) * pace.adaptation)
    if any(rule.has_calibration for rule in rules):
        question = pace.reading_question + min(settings["num_samples"], SAMPLES) * pace.question
        of_task = pace.reading_task + pace.adaptation + settings["calibration_examples"] * question
        fixed += min(settings["calibration_tasks"], len(suite.train)) * of_task
    return Work(
        fixed=fixed,
        episode=len({cell.training.name for cell in cells if cell.training}) * pace.episode,
        question=len(suite.evaluation) * (pace.reading_question + passes * pace.question),
    )


def fit(work: Work, full: Mapping[str, int], given: Mapping[str, int], limit: float) -> dict[str, int]:
    """The part of the ``full`` size that takes ``limit`` seconds, or at least ``FLOOR``; what is ``given`` stays."""
    fixed = work.seconds({name: given.get(name, 0) for name in full})
    whole = work.seconds({name: given.get(name, most) for name, most in full.items()})
    share = 1.0 if whole <= limit else (limit - fixed) / (whole - fixed) if whole > fixed else 0.0
    return {name: given.get(name, max(int(share * most), min(FLOOR[name], most))) for name, most in full.items()}
