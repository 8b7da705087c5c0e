"""``abmll tune``: choose every method's settings on the validation tasks of a suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abmll.cli.compare import ComparisonFlags, prepare
from abmll.cli.console import narrator, print_json, print_table, print_text
from abmll.common.config import ActivationCacheConfig
from abmll.common.errors import ConfigError
from abmll.experiments.budget import SharedConfig


def tune(
    *,
    suite: str,
    flags: ComparisonFlags,
    trials: int = 10,
    seeds: tuple[int, ...] = (0,),
    output_dir: Path = Path("runs/tune"),
    shared: SharedConfig,
    activations: ActivationCacheConfig,
    explicit: frozenset[str] = frozenset(),
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Choose every method's settings with the same number of trials on the validation tasks of a suite.

    Learning rates of all methods, and beta and the start of sigma for ABMLL; the evaluation tasks take no part. Writes
    settings.json, which 'abmll compare --settings' reads. Needs Optuna (the extra 'tune').

    Args:
        trials: trials of each method; the first has the settings as they are
        seeds: seeds that a trial is averaged over
        output_dir: folder for trials, cells, training runs and settings.json
    """
    from abmll.cli.places import resumable
    from abmll.experiments.executors.choice import choose
    from abmll.experiments.search import RESULT
    from abmll.experiments.search import tune as search

    if trials < 1:
        raise ConfigError(f"trials is {trials}; use 1 or more")
    for name in ("adapt_examples", "num_samples", "prune", "recalibrate"):
        if len(getattr(shared, name)) > 1:
            raise ConfigError(f"{name}: a trial has one value of it; name one")
    results, config = prepare(output_dir, suite, flags, seeds, shared, activations, explicit, validation=True)
    executor = choose(flags.executor, flags.executor_options or (), flags.jobs, output_dir)
    with resumable(output_dir):
        document = search(results, results.load_suite(), config, trials, executor, narrator(quiet), quiet)
    if json:
        print_json(document)
    elif not quiet:
        rows = [
            [key, *(f"{score[name]:.3f}" for name in ("nll", "accuracy", "ece")), _in_words(document["methods"][key])]
            for key, score in document["scores"].items()
        ]
        print_table(["Method", "NLL", "Accuracy", "ECE", "Settings"], rows)
        print_text(f"\nbest of {trials} trials on validation tasks; settings: {output_dir / RESULT}")


def _in_words(settings: Mapping[str, Any]) -> str:
    """Numbers found, and what a settings file has brought along."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
    )
