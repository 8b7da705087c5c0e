"""``abmll tune``: choose every method's settings on the validation tasks of a suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abmll.cli.compare import command_line, comparison_config
from abmll.cli.console import narrator, print_json, print_table
from abmll.common.config import ActivationCacheConfig, AdapterConfig, ModelConfig, PromptConfig
from abmll.common.errors import ConfigError
from abmll.experiments.budget import BudgetConfig, EvaluationGrid


def tune(
    *,
    suite: str,
    methods: tuple[str, ...] = ("all",),
    trials: int = 10,
    seeds: tuple[int, ...] = (0,),
    output_dir: Path = Path("runs/tune"),
    base: ModelConfig,
    adapter: AdapterConfig,
    prompt: PromptConfig,
    budget: BudgetConfig,
    evaluation: EvaluationGrid,
    activations: ActivationCacheConfig,
    settings: Path | None = None,
    override: tuple[str, ...] = (),
    data_dir: Path | None = None,
    allow_missing: bool = False,
    jobs: int = 1,
    explicit: frozenset[str] = frozenset(),
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Choose every method's settings with the same number of trials on the validation tasks of a suite.

    Learning rates of all methods, and beta and the start of sigma for ABMLL; the evaluation tasks take no part. Writes
    settings.json, which 'abmll compare --settings' reads. Needs Optuna (the extra 'tune').

    Args:
        methods: all, or some, each as METHOD or METHOD@PRESET
        trials: trials of each method; the first has the settings as they are
        seeds: seeds that a trial is averaged over
        output_dir: folder for trials, cells, training runs and settings.json
        settings: file with settings by method to start from
        override: settings for all methods (weight_decay=0.1) or one (abmll.gamma=0)
        jobs: processes, each with one thread and one method at a time
    """
    from abmll.cli.places import check_folder, refuse_other_processes
    from abmll.experiments.cell_runner import ResultFolder
    from abmll.experiments.search import RESULT
    from abmll.experiments.search import tune as search

    refuse_other_processes()
    for name, value in (("jobs", jobs), ("trials", trials)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; use 1 or more")
    for name in ("adapt_examples", "num_samples", "prune", "recalibrate"):
        if len(getattr(evaluation, name)) > 1:
            raise ConfigError(f"{name}: a trial has one value of it; name one")
    check_folder(output_dir, overwrite=True)  # its own earlier results
    place = ResultFolder(output_dir, suite, base, activations, command_line(), data_dir, allow_missing, validation=True)
    wanted = comparison_config(
        methods, seeds, (base, adapter, prompt, budget, evaluation), explicit, settings, override
    )
    try:
        document = search(place, place.load_suite(), wanted, trials, jobs, narrator(quiet), quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{output_dir}: run the same command to go on; what is finished is kept") from None
    if json:
        print_json(document)
    elif not quiet:
        rows = [
            [key, *(f"{score[name]:.3f}" for name in ("nll", "accuracy", "ece")), _in_words(document["methods"][key])]
            for key, score in document["scores"].items()
        ]
        print_table(["Method", "NLL", "Accuracy", "ECE", "Settings"], rows)
        print(f"\nbest of {trials} trials on validation tasks; settings: {output_dir / RESULT}")


def _in_words(settings: Mapping[str, Any]) -> str:
    """Numbers found, and what a settings file has brought along."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
    )
