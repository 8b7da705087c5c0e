"""Choosing settings: for every method the same number of trials, evaluated on the suite's validation tasks.

A trial is a cell of the suite with the validation tasks in the role of the unseen ones; they are not learned from. Its
value is the mean NLL over these tasks and the seeds: a proper score, so that a method gains by honest probabilities as
well as by right answers. The first trial has the settings as they are, the others are Optuna's (TPE with the seed).

Trials are kept in one JSON file a method, beside cells and runs: a tuning that was stopped goes on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from abmll.common.documents import Document, read_json, write_document
from abmll.common.errors import AbmllError, ConfigError
from abmll.common.progress import progress
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import digest, load_cell
from abmll.experiments.execution import runner_for
from abmll.experiments.executors.work import Executor, Lost, work_through
from abmll.experiments.method_spec import ComparisonConfig, Spec
from abmll.experiments.planning import plan
from abmll.experiments.ranges import Range, in_range, search_space
from abmll.tasks import Suite

RESULT = "settings.json"
STARTUP = 5  # trials drawn at random before the sampler learns from them


@dataclass(frozen=True)
class Trial:
    """Settings that were tried; ``nll`` is None where the method failed under them, and ``error`` says how."""

    settings: dict[str, float]
    nll: float | None
    accuracy: float | None = None
    ece: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Study:
    """One method's search: ``trials`` in all; ``config`` is of that method, and has the settings found for its base."""

    spec: Spec
    trials: int
    config: ComparisonConfig


def tune(
    results: ResultFolder,
    suite: Suite,
    config: ComparisonConfig,
    trials: int,
    executor: Executor,
    say: Callable[[str], None],
    quiet: bool,
) -> Document:
    """Search for every method of ``config``; writes and returns what ``settings.json`` holds.

    Methods that continue another one's training come after that one, which is tuned too if it is not named, and start
    from its best settings. Raises ``ConfigError`` without Optuna, and for a theta that comes with the package,
    ``AbmllError`` where a method fails in every trial.
    """
    _optuna()
    for spec in config.specs:
        if spec.shipped is not None:
            raise ConfigError(f"methods: {spec.key} has its theta already, and nothing to tune; leave it out")
    bases = [spec.base for spec in config.specs if spec.base is not None]
    first = [spec for spec in dict.fromkeys([*bases, *config.specs]) if spec.base is None]
    later = [spec for spec in config.specs if spec.base is not None]
    best: dict[Spec, Trial] = {}
    tuned = dict(config.tuned)
    with progress(len(first) + len(later), "tuning", "method", quiet=quiet) as bar:
        for group in (first, later):
            studies = [Study(spec, trials, replace(config, specs=[spec], tuned=tuned)) for spec in group]
            runner = runner_for(executor, replace(results, validation=True), say, quiet)
            for study, done in work_through(studies, partial(search, runner), executor):
                if isinstance(done, Lost):
                    raise AbmllError(f"tune: {study.spec.key}: {done.reason}")
                best[study.spec] = best_of(study.spec, done)
                tuned[study.spec.key] = {**tuned.get(study.spec.key, {}), **best[study.spec].settings}
                bar.update()
    document = {
        "suite": suite.name,
        "validation": list(suite.validation),
        "seeds": list(config.seeds),
        "trials": trials,
        "command": results.command,
        "methods": {spec.key: tuned[spec.key] for spec in (*first, *later)},
        "scores": {spec.key: vars(trial) for spec, trial in best.items()},
    }
    write_document(results.folder / RESULT, "settings", document)
    return document


def best_of(spec: Spec, trials: Sequence[Trial]) -> Trial:
    """The trial of lowest NLL. Raises ``AbmllError`` where none has any."""
    if all(trial.nll is None for trial in trials):
        raise AbmllError(f"tune: {spec.key} failed in every trial: {trials[0].error}")
    return min(trials, key=lambda trial: math.inf if trial.nll is None else trial.nll)


def search(runner: CellRunner, study: Study) -> list[Trial]:
    """All trials of one method; those that were done before are read."""
    optuna = _optuna()
    space, config = search_space(study.spec), study.config
    path = runner.results.folder / "trials" / f"{study.spec.key.replace('@', '+')}-{_key(runner, study, space)}.json"
    trials = _read(path)
    # Given the earlier trials in their order, a sampler of the same seed proposes what it would have proposed.
    sampler = optuna.samplers.TPESampler(seed=int(config.seeds[0]), n_startup_trials=STARTUP)
    optimizer = optuna.create_study(sampler=sampler, direction="minimize")
    ranges = {name: optuna.distributions.FloatDistribution(*own[:2], log=own.log) for name, own in space.items()}
    optimizer.enqueue_trial(in_range(config.settings_of(study.spec, runner.suite.prompt), space))
    for number in range(study.trials):
        proposed = optimizer.ask(ranges)
        if number == len(trials):
            trials.append(_try(runner, study, proposed.params))
            write_document(path, "trials", {"trials": [vars(trial) for trial in trials]})
        elif trials[number].settings != proposed.params:
            raise ConfigError(f"{path}: holds trials of another version of Optuna; delete it to search again")
        nll = trials[number].nll
        optimizer.tell(proposed, nll, state=optuna.trial.TrialState.FAIL if nll is None else None)
    return trials


def _try(runner: CellRunner, study: Study, settings: Mapping[str, float]) -> Trial:
    key, config = study.spec.key, study.config
    own = {**config.own, key: {**config.own.get(key, {}), **settings}}
    means = []
    for cell in plan(runner.suite, replace(config, own=own)):
        try:
            runner.compute(cell)
        except AbmllError as error:
            return Trial(dict(settings), None, error=str(error))
        document = load_cell(cell.path(runner.results.folder))
        assert document is not None
        means.append(document["mean"])
    nll, accuracy, ece = (sum(mean[name] for mean in means) / len(means) for name in ("nll", "accuracy", "ece"))
    return Trial(dict(settings), nll, accuracy, ece)


def _key(runner: CellRunner, study: Study, space: Mapping[str, Range]) -> str:
    """A hash of all that the trials depend on; more of them go on with those that are there."""
    cells = [cell.hash for cell in plan(runner.suite, study.config)]
    return digest([cells, {name: list(own) for name, own in space.items()}, STARTUP])


def _read(path: Path) -> list[Trial]:
    if not path.exists():
        return []
    remedy = "delete it to search again"
    try:
        return [Trial(**trial) for trial in read_json(path, "trials", remedy, ConfigError)["trials"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error}); {remedy}") from error


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError('tune: needs Optuna; install it with: pip install "abmll[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
