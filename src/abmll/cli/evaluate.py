"""``abmll evaluate``: adapt to every evaluation task of a suite, and measure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abmll.cli.output import narrator, print_json
from abmll.config import EvaluateConfig, PlaceConfig


def evaluate(
    run: Path,
    *,
    suite: str,
    output_dir: Path,
    settings: EvaluateConfig,
    place: PlaceConfig,
    data_dir: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Adapt to every evaluation task of a suite; writes metrics.json, predictions.jsonl and report.html.

    Args:
        run: folder of a training run
        suite: name or YAML file of a suite
        output_dir: folder to write to
        data_dir: folder in which the suite's tasks are looked up
        seed: choice and order of examples, and noise
        overwrite: replace what is in the output folder
        quiet: no progress bar
        json: print JSON instead of a table
    """
    from abmll.cli.models import load_run, refuse_filled
    from abmll.evaluation import evaluate_tasks, save_evaluation
    from abmll.report import write_report
    from abmll.report.tables import headline, per_task
    from abmll.tasks import load_suite, refuse_leaks

    refuse_filled(output_dir, overwrite)
    loaded = load_suite(suite, data_dir)
    refuse_leaks(loaded.train, loaded.evaluation)
    model = load_run(run, place, quiet)
    evaluation = evaluate_tasks(model, loaded.evaluation, settings, seed=seed, quiet=quiet)
    save_evaluation(evaluation, output_dir, model, settings, {"run": str(run), "suite": loaded.name, "seed": seed})
    report = write_report(output_dir)
    if evaluation.truncated:
        narrator(quiet)(f"{evaluation.truncated} inputs were too long and lost their middle")
    if json:
        print_json({"mean": evaluation.mean, "pooled": evaluation.pooled, "tasks": evaluation.tasks})
    elif not quiet:
        label = model.learning.method
        print(per_task({label: evaluation.tasks}).text(), headline({label: evaluation.mean}).text(), sep="\n\n")
        print(f"\nreport: {report}")


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """The suite's own numbers of examples."""
    from abmll.tasks.suite import caps_of_suite

    return caps_of_suite(values["suite"]) if "suite" in values else {}
