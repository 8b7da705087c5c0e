"""What a comparison would cost on a GPU, before it is run and without its tasks: operations and memory of every row.

Made of the counts of ``costs`` and of the usual lengths of the suite's tasks. A gradient step of any method is counted
as one of ABMLL's, from which it differs by a percent or two, but for the second-order methods. Left out: activations
that are kept instead of being computed again, the heads' own sampling and the prompts that they read without an input,
loading.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from abmll.common.config import EstimateConfig
from abmll.experiments.cells import Cell, Training
from abmll.experiments.costs import Estimate, Shape, flops, load_shape, totals
from abmll.experiments.method_spec import Spec
from abmll.experiments.task_shapes import mean_tokens
from abmll.methods import find_rule
from abmll.methods.ensemble import Ensemble
from abmll.methods.lora import Unchanged
from abmll.methods.maml import Maml
from abmll.methods.mixture import AbmllMixture
from abmll.methods.trained_head import TrainedHead
from abmll.tasks import Example, Suite, Task
from abmll.tasks.definition import SuiteFile

BATCH = "per_device_train_batch_size"
UNKNOWN_TESTS = 500  # questions of a task where neither settings nor suite have a number
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class RowCost:
    """Operations of a row of the tables over all its seeds and values, and bytes of its largest gradient step.

    That step's examples are all as long as the settings allow. A training run that several rows start from is counted
    in the first of them.
    """

    label: str
    cells: int
    runs: int
    training_flops: int
    unseen_flops: int
    memory: int

    @property
    def flops(self) -> int:
        """Of training and unseen tasks together."""
        return self.training_flops + self.unseen_flops


def stand_in(file: SuiteFile) -> Suite:
    """The suite with a made-up example in the place of every task's own, enough to plan cells."""
    example = Example("0", "?", ("yes", "no"), 0)
    train, evaluation = (tuple(Task(name, (example,)) for name in side) for side in (file.train, file.evaluation))
    suite = Suite(file.name, file.description, train, evaluation, file.prompt)
    return replace(suite, adapt_examples=file.adapt_examples, test_examples=file.test_examples)


def forecast(cells: Sequence[Cell], file: SuiteFile) -> list[RowCost]:
    """What the rows cost, in the order of the cells. Raises ``ConfigError`` for a model whose shape is not known."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    counted: set[str] = set()
    return [_row(own, file, counted) for own in rows.values()]


def _row(cells: Sequence[Cell], file: SuiteFile, counted: set[str]) -> RowCost:
    runs = {cell.training.name: cell.training for cell in cells if cell.training is not None}
    new = [run for name, run in runs.items() if name not in counted]
    counted.update(runs)
    steps = [_longest(run.method, run.settings, BATCH, file.train) for run in runs.values()]
    own = [cell for cell in cells if _steps(cell.spec)]
    steps += [_longest(cell.spec.method, cell.settings, "batch_size", file.evaluation) for cell in own]
    return RowCost(
        label=cells[0].spec.label,
        cells=len(cells),
        runs=len(new),
        training_flops=sum(_training_flops(run, file) for run in new),
        unseen_flops=sum(_unseen_flops(cell, file) for cell in cells),
        memory=max(steps, default=0),
    )


def _longest(method: str, settings: Settings, batch: str, names: Sequence[str]) -> int:
    """Bytes of a step whose examples are all as long as the settings allow; as usual where they allow any length."""
    tokens = settings["max_length"] or _tokens(method, settings, names)
    # Until the head has learned an episode, the graphs of all its passes are held.
    passes = settings["inner_steps"] + 1 if issubclass(find_rule(method), TrainedHead) else 1
    return _step(method, settings, passes * settings[batch], tokens).memory.total


def _training_flops(run: Training, file: SuiteFile) -> int:
    """Episodes of K steps, and one more that teaches theta."""
    settings = run.settings
    step = _step(run.method, settings, settings[BATCH], _tokens(run.method, settings, file.train))
    if issubclass(find_rule(run.method), Maml):
        return settings["max_steps"] * step.episode_flops
    parts = settings["gradient_accumulation_steps"]
    return settings["max_steps"] * (settings["inner_steps"] + 1) * parts * step.step_flops


def _unseen_flops(cell: Cell, file: SuiteFile) -> int:
    """Adapting to every unseen task and asking it, and ABMLL's calibration on training tasks."""
    rule, settings = find_rule(cell.spec.method), cell.settings
    members = settings["ensemble_size"] if issubclass(rule, (Ensemble, AbmllMixture)) else 1
    passes = max(members, settings["num_samples"] if rule.is_posterior else 1)
    questions = settings["test_examples"] or UNKNOWN_TESTS
    total = len(file.evaluation) * _task_flops(cell, file.evaluation, members, passes * questions)
    if rule.has_calibration and settings["use_calibration"]:
        tasks = min(settings["calibration_tasks"], len(file.train))
        total += tasks * _task_flops(cell, file.train, 1, passes * settings["calibration_examples"])
    return total


def _task_flops(cell: Cell, names: Sequence[str], members: int, passes: int) -> int:
    """Learning one task with every member, and so many passes over a question."""
    settings, method = cell.settings, cell.spec.method
    tokens = _tokens(method, settings, names)
    forward = flops.forward_flops(_shape(settings), _config(settings, 1, tokens))
    if _steps(cell.spec):
        step = _step(method, settings, settings["batch_size"], tokens)
        return members * settings["steps"] * step.step_flops + passes * forward
    reading = settings["adapt_examples"] or 0 if find_rule(method).classifier else 0
    return (reading + passes) * forward


def _steps(spec: Spec) -> bool:
    """Whether the method learns an unseen task by gradient steps."""
    rule = find_rule(spec.method)
    return rule.classifier is None and not issubclass(rule, Unchanged)


def _step(method: str, settings: Settings, batch: int, tokens: int) -> Estimate:
    """A gradient step: of MAML, of the published algorithm where the adapter is of output space, else of ABMLL."""
    rule, config = find_rule(method), _config(settings, batch, tokens)
    if issubclass(rule, Maml):
        return totals.maml(_shape(settings), config)
    of_output = settings["space"] == "output" and rule.is_posterior
    return (totals.published if of_output else totals.abmll)(_shape(settings), config)


def _config(settings: Settings, batch: int, tokens: int) -> EstimateConfig:
    return EstimateConfig(
        r=settings["r"],
        per_device_train_batch_size=batch,
        sequence_length=tokens,
        inner_steps=settings["inner_steps"],
        dtype=settings["dtype"],
    )


def _tokens(method: str, settings: Settings, names: Sequence[str]) -> int:
    """Of an example as long as those of the tasks are on average, with its demonstrations."""
    tokens = mean_tokens(names, settings["max_length"])
    if find_rule(method).demonstrations:
        tokens = min(tokens * (1 + settings["num_demonstrations"]), settings["max_length"] or 2**30)
    return tokens


def _shape(settings: Settings) -> Shape:
    return _load(settings["model"], tuple(settings["target_modules"]), settings["layers_to_transform"])


_load = cache(load_shape)
