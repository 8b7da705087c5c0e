"""Choosing settings: for every method the same number of trials, evaluated on the suite's validation tasks.

A trial is a cell of the suite with the validation tasks in the role of the unseen ones, which are not learned from. Its
value is the mean NLL over these tasks and the seeds: a proper score, so that a method gains by honest probabilities as
well as by right answers. The first trial has the settings as they are, the others are Optuna's (TPE with the seed).

What was tried is one JSON file a method, what was learned are cells and runs: a tuning that was stopped goes on.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from abmll.common.errors import AbmllError, ConfigError
from abmll.common.files import write_json
from abmll.common.progress import progress
from abmll.experiments.cell_runner import CellRunner, ResultFolder
from abmll.experiments.cells import load_cell
from abmll.experiments.method_spec import SETTINGS_FORMAT, Spec, resolve
from abmll.experiments.planning import ComparisonConfig, plan
from abmll.experiments.ranges import Range, continued, in_range, search_space
from abmll.experiments.workers import work_through
from abmll.tasks.suite import Suite

RESULT = "settings.json"
FORMAT = "abmll-trials-2"
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
    """One method's search: ``trials`` in all, with the settings found for the method that it continues."""

    spec: Spec
    trials: int
    wanted: ComparisonConfig


def tune(
    place: ResultFolder,
    suite: Suite,
    wanted: ComparisonConfig,
    trials: int,
    jobs: int,
    say: Callable[[str], None],
    quiet: bool,
) -> dict[str, Any]:
    """Search for every method of ``wanted``; writes and returns what ``settings.json`` holds.

    Methods that continue another one's training come after that one, which is tuned too if it is not named, and start
    from its best settings. Raises ``ConfigError`` without Optuna, ``AbmllError`` where a method fails in every trial.
    """
    _optuna()
    specs = list(wanted.specs)
    bases = [other for spec in specs if (other := continued(spec)) is not None and other not in specs]
    first = [spec for spec in dict.fromkeys([*bases, *specs]) if continued(spec) is None]
    later = [spec for spec in specs if continued(spec) is not None]
    found: dict[str, list[Trial]] = {}
    tuned = dict(wanted.tuned)
    with progress(len(first) + len(later), "tuning", "method", quiet=quiet) as bar:
        for group in (first, later):
            studies = [Study(spec, trials, replace(wanted, specs=[spec], tuned=tuned)) for spec in group]
            make = partial(_searcher, place, say, quiet or jobs > 1)
            for study, done in work_through(studies, make, jobs):
                found[study.spec.key] = done
                tuned[study.spec.key] = {**tuned.get(study.spec.key, {}), **best_of(study.spec, done).settings}
                bar.update()
    document = {
        "format": SETTINGS_FORMAT,
        "suite": suite.name,
        "validation": list(suite.validation),
        "seeds": list(wanted.seeds),
        "trials": trials,
        "command": place.command,
        "methods": {spec.key: tuned[spec.key] for spec in (*first, *later)},
        "scores": {key: vars(best_of(Spec(*_parts(key)), done)) for key, done in found.items()},
    }
    write_json(place.folder / RESULT, document)
    return document


def best_of(spec: Spec, trials: Sequence[Trial]) -> Trial:
    """The trial of lowest NLL. Raises ``AbmllError`` where none has any."""
    whole = [trial for trial in trials if trial.nll is not None]
    if not whole:
        raise AbmllError(f"tune: {spec.key} failed in every trial: {trials[0].error}")
    return min(whole, key=lambda trial: trial.nll if trial.nll is not None else math.inf)


def _searcher(place: ResultFolder, say: Callable[[str], None], quiet: bool) -> Callable[[Study], list[Trial]]:
    return partial(search, CellRunner(replace(place, validation=True), say, quiet))


def search(runner: CellRunner, study: Study) -> list[Trial]:
    """All trials of one method; those that were done before are read."""
    optuna = _optuna()
    space = search_space(study.spec)
    path = runner.place.folder / "trials" / f"{study.spec.key.replace('@', '+')}-{_key(runner, study, space)}.json"
    trials = _read(path)
    # Told of the earlier trials in their order, a sampler of the same seed proposes what it would have proposed.
    sampler = optuna.samplers.TPESampler(seed=int(study.wanted.seeds[0]), n_startup_trials=STARTUP)
    optimizer = optuna.create_study(sampler=sampler, direction="minimize")
    ranges = {name: optuna.distributions.FloatDistribution(*own[:2], log=own.log) for name, own in space.items()}
    optimizer.enqueue_trial(in_range(_current(runner.suite, study), space))
    for number in range(study.trials):
        asked = optimizer.ask(ranges)
        if number == len(trials):
            trials.append(_try(runner, study, asked.params))
            write_json(path, {"format": FORMAT, "trials": [vars(trial) for trial in trials]})
        elif trials[number].settings != asked.params:
            raise ConfigError(f"{path}: holds trials of another version of Optuna; delete it to search again")
        nll = trials[number].nll
        state = optuna.trial.TrialState.FAIL if nll is None else None
        optimizer.tell(asked, None if nll is None else nll, state=state)
    return trials


def _try(runner: CellRunner, study: Study, settings: Mapping[str, float]) -> Trial:
    own = {**study.wanted.own, study.spec.key: {**study.wanted.own.get(study.spec.key, {}), **settings}}
    means = []
    for cell in plan(runner.suite, replace(study.wanted, own=own)):
        try:
            runner.compute(cell)
        except AbmllError as error:
            return Trial(dict(settings), None, error=str(error))
        document = load_cell(cell.path(runner.place.folder))
        assert document is not None
        means.append(document["mean"])
    nll, accuracy, ece = (sum(mean[name] for mean in means) / len(means) for name in ("nll", "accuracy", "ece"))
    return Trial(dict(settings), nll, accuracy, ece)


def _current(suite: Suite, study: Study) -> dict[str, Any]:
    wanted = study.wanted
    return resolve(study.spec, wanted.shared, suite.prompt, wanted.tuned, wanted.asked, wanted.own)


def _key(runner: CellRunner, study: Study, space: Mapping[str, Range]) -> str:
    """A hash of all that the trials depend on; more of them go on with those that are there."""
    cells = [cell.hash for cell in plan(runner.suite, study.wanted)]
    text = json.dumps([cells, {name: list(own) for name, own in space.items()}, STARTUP])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(path: Path) -> list[Trial]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Trial(**trial) for trial in content["trials"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error}); delete it to search again") from error


def _parts(key: str) -> tuple[str, str]:
    method, _, preset = key.partition("@")
    return method, preset or "default"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError('tune: needs Optuna; install it with: pip install "abmll[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
