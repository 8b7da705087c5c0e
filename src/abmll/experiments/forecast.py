"""How long a comparison would take: two episodes and one adaptation of every method are measured, the rest is counted."""

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.common.checkpoint import PREFIX, checkpoints
from abmll.common.config import EvaluateConfig
from abmll.common.progress import progress
from abmll.common.settings import pick
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import Cell, Training
from abmll.experiments.execution import missing_cells
from abmll.experiments.few_shot import evaluate_tasks
from abmll.experiments.planning import units
from abmll.methods import find_rule
from abmll.model.run_folder import TIMING, RunFolder
from abmll.tasks.suite import Suite

QUESTIONS = 8


@dataclass(frozen=True)
class Pace:
    """A method's measured speed, in seconds."""

    episode: float
    adaptation: float
    question: float


@dataclass(frozen=True)
class Forecast:
    """What is left of one method's cells."""

    label: str
    done: int
    left: int
    pace: Pace | None  # None where nothing is left
    seconds: float


def forecast(cells: Sequence[Cell], place: ResultFolder, say: Callable[[str], None], quiet: bool) -> list[Forecast]:
    """The time left by row of the tables, in one process; what is finished, runs included, costs nothing.

    A run that several methods share is counted where it comes first.
    """
    left = missing_cells(cells, place)
    methods = {cell.spec.method for cell in cells}
    rows = list(dict.fromkeys(cell.row for cell in cells))
    paces: dict[str, Pace] = {}
    seconds = dict.fromkeys(rows, 0.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress(len({cell.row for cell in left}), "measuring", "method", quiet=quiet) as bar,
    ):
        runner = CellRunner(replace(place, folder=Path(folder)), say, quiet)
        for cell in left:
            if cell.row not in paces:
                paces[cell.row] = measure(cell, runner)
                bar.update()
            seconds[cell.row] += _evaluating(cell, paces[cell.row], runner.suite)
            seconds[cell.row] += _calibration(cell, paces[cell.row], runner.suite, methods)
        for unit in units(left):
            training = unit[0].training
            if training is not None:
                seconds[unit[0].row] += _episodes_left(training, place.folder) * paces[unit[0].row].episode
    counts = {row: [cell for cell in cells if cell.row == row] for row in rows}
    return [
        Forecast(
            label=row,
            done=len(own) - sum(cell in left for cell in own),
            left=sum(cell in left for cell in own),
            pace=paces.get(row),
            seconds=seconds[row],
        )
        for row, own in counts.items()
    ]


def measure(cell: Cell, runner: CellRunner) -> Pace:
    """Train for two episodes (or two outer steps), adapt to the first unseen task, ask a few of its questions."""
    training = cell.training
    if training is not None:
        episodes = 2 * training.settings["meta_batch"]
        short = {**training.settings, "max_steps": episodes, "save_steps": episodes, "calibration_tasks": 0}
        training = replace(training, settings=short, kept_episodes=())
        cell = replace(
            cell, training=training, settings={**cell.settings, "episodes": episodes, "calibration_tasks": 0}
        )
    model, _ = runner.learned(cell)
    episode = 0.0 if training is None else _seconds_a_episode(runner.place.folder / "runs" / training.name)
    settings = replace(pick(EvaluateConfig, cell.settings), test_examples=QUESTIONS)
    tasks = runner.suite.evaluation[:1]
    cache = runner.cache(model, cell.settings)
    evaluation = evaluate_tasks(model, tasks, settings, seed=cell.seed, cache=cache, quiet=True)
    asked = evaluation.mean["num_examples"]
    return Pace(episode, evaluation.seconds["adapting"], evaluation.seconds["predicting"] / asked)


def _seconds_a_episode(run: Path) -> float:
    """Of the later half of the episodes: in the first ones a machine warms up."""
    rows = RunFolder(run).rows(TIMING)
    later = rows[len(rows) // 2 :]
    return sum(row["seconds"] for row in later) / len(later)


def _evaluating(cell: Cell, pace: Pace, suite: Suite) -> float:
    limit = cell.settings["test_examples"]
    sizes = [len(task.test) for task in suite.evaluation]
    questions = sum(size if limit is None else min(size, limit) for size in sizes)
    return len(sizes) * pace.adaptation + questions * pace.question


def _calibration(cell: Cell, pace: Pace, suite: Suite, methods: Collection[str]) -> float:
    """Learning theta's calibration: adaptations and questions of training tasks, for every cell that has one of its own.

    A method that continues a run takes over the run's, which is counted with the method that it continues, if that is
    among the ``methods``.
    """
    rule = find_rule(cell.spec.method)
    own = rule.has_calibration and rule.base_method not in methods and cell.settings["use_calibration"]
    if not own and cell.settings["recalibrate"] != "calibration":
        return 0.0
    tasks = min(cell.settings["calibration_tasks"], len(suite.train))
    return tasks * (pace.adaptation + cell.settings["calibration_examples"] * pace.question)


def _episodes_left(training: Training, folder: Path) -> int:
    run, wanted = folder / "runs" / training.name, training.settings["max_steps"]
    if (run / f"{PREFIX}{wanted}").is_dir():
        return 0
    return wanted - max((done for done in checkpoints(run) if done <= wanted), default=0)
