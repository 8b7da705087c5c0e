"""``abmll train``: meta-train an adapter on many tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abmll.cli.output import narrator, print_json, print_table
from abmll.config import AdapterConfig, ModelConfig, PromptConfig, TrainConfig


def train(
    *,
    tasks: str,
    preset: str = "default",
    base: ModelConfig,
    adapter: AdapterConfig,
    prompt: PromptConfig,
    settings: TrainConfig,
    data_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Meta-train an adapter on many tasks; leaves a run folder with settings, metrics, checkpoints and a report.

    Args:
        tasks: a folder or file of tasks, hf:NAME, or a suite (name or YAML file), of which the training tasks are used
        preset: default, paper-v1 or paper-v3; settings given by flag or file win over it
        data_dir: folder in which a suite's tasks are looked up
        resume: go on from the newest checkpoint in the output folder
        overwrite: replace a run in the output folder
        quiet: no progress bar
        json: print JSON instead of a table
    """
    from abmll.cli.sources import is_suite
    from abmll.language.base import load_base
    from abmll.model import AbmllModel
    from abmll.report import write_report
    from abmll.tasks import load_suite, load_tasks, refuse_leaks
    from abmll.training import MetaTrainer

    if is_suite(tasks):
        suite = load_suite(tasks, data_dir)
        refuse_leaks(suite.train, suite.evaluation)
        chosen = list(suite.train)
    else:
        chosen = load_tasks(tasks)
    say = narrator(quiet)
    model = AbmllModel(load_base(base, say, quiet), adapter, prompt, settings.seed)
    trainer = MetaTrainer(model, chosen, settings)
    say(trainer.describe())
    result = trainer.train(resume=resume, overwrite=overwrite, quiet=quiet)
    report = write_report(result.folder)
    last = trainer.folder.rows()[-len(chosen) :]
    summary = {
        "run": str(result.folder),
        "visits": result.visits,
        "gradient_steps": result.gradient_steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "nll": sum(row["nll"] for row in last) / len(last),
        "accuracy": sum(row["accuracy"] for row in last) / len(last),
        "report": str(report),
    }
    if json:
        print_json(summary)
    elif not quiet:
        rows = [(key, f"{value:.3f}" if isinstance(value, float) else str(value)) for key, value in summary.items()]
        print_table((f"last {len(last)} visits", ""), rows)


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's settings, and over them the prompt settings of a suite."""
    from abmll.cli.sources import is_suite
    from abmll.presets import fill as of_preset
    from abmll.tasks.suite import prompt_of_suite

    filled = of_preset(values)
    if "tasks" in values and is_suite(values["tasks"]):
        filled |= prompt_of_suite(values["tasks"])
    return filled
