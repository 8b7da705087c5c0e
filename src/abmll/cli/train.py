"""``abmll train``: meta-train an adapter on many tasks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.cli.console import count, cut_in_words, in_words, narrator, print_result
from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig, TrainConfig

if TYPE_CHECKING:
    from abmll.training.trainer import MetaTrainer, TrainResult


def train(
    *,
    tasks: str,
    preset: str = "default",
    base: ModelConfig,
    adapter: AdapterConfig,
    prompt: PromptConfig,
    settings: TrainConfig,
    eval_tasks: str | None = None,
    data_dir: Path | None = None,
    allow_missing: bool = False,
    column_mapping: tuple[str, ...] | None = None,
    generate: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Meta-train an adapter on many tasks; leaves a run folder with settings, metrics, checkpoints and a report.

    Args:
        tasks: a folder or file of tasks, a dataset (hf:NAME[CONFIG]), 'bigbench' once it is fetched, or a suite (name
            or YAML file), of which the training tasks are used
        eval_tasks: validation tasks, in the same form; of a suite its validation tasks (default: those of the suite
            named by --tasks, where --eval-steps, --load-best-model-at-end or --early-stopping-patience is given)
        generate: the outputs are texts to be written, not chosen, whatever the files' form
        resume: go on from the newest checkpoint in the output folder
    """
    from abmll.cli.places import check_run
    from abmll.cli.sources import Reading
    from abmll.cli.validation_tasks import tasks_of_training
    from abmll.common.processes import together
    from abmll.experiments.html import write_report
    from abmll.language.activation_cache import open_cache
    from abmll.language.base import load_base
    from abmll.model.meta_learner import AbmllModel
    from abmll.tasks.mapping import parse_mapping
    from abmll.training.refusals import refuse_too_many, refuse_unfit
    from abmll.training.trackers import trackers
    from abmll.training.trainer import MetaTrainer

    settings = replace(settings, output_dir=str(Path(settings.output_dir).expanduser()))
    refuse_unfit(settings)
    with together() as processes:
        quiet = quiet or not processes.is_first
        say = narrator(quiet)
        with processes.agreed():
            refuse_too_many(processes.size, settings.meta_batch)
            if processes.is_first:
                # What is missing or in the way is named before anything loads.
                trackers(settings.report_to, Path(settings.output_dir))
                check_run(Path(settings.output_dir), resume, overwrite)
            how = Reading(parse_mapping(column_mapping), say, quiet, generate)
            chosen, held_out = tasks_of_training(tasks, eval_tasks, settings, data_dir, allow_missing, how)
        loaded = load_base(base, say, quiet)
        processes = replace(processes, settle=loaded.settle)
        model = AbmllModel(loaded, adapter, prompt, settings.seed)
        cache = open_cache(loaded, model.scorer.lower_blocks, settings, settings.activation_cache_gb, say)
        trainer = MetaTrainer(model, chosen, settings, cache, eval_tasks=held_out, processes=processes)
        say(trainer.describe())
        result = trainer.train(resume=resume, overwrite=overwrite, quiet=quiet)
        loaded.settle()
    if processes.is_first:
        summary = _summary(trainer, result) | {"report": str(write_report(result.folder))}
        print_result(summary, _facts(summary, trainer.rule.label), quiet, json)


def _summary(trainer: "MetaTrainer", result: "TrainResult") -> dict[str, Any]:
    """The whole run in numbers, what was done before a --resume included; nll and accuracy are those of its end."""
    cost = trainer.folder.cost()
    num_tasks = len(trainer.tasks)
    last = trainer.folder.rows()[-num_tasks:]
    return {
        "run": str(result.folder),
        "method": trainer.config.method,
        "tasks": num_tasks,
        "episodes": result.episodes,
        "gradient_steps": cost["steps"],
        "tokens": cost["tokens"],
        "seconds": round(cost["seconds"], 3),
        "averaged_episodes": len(last),
        "nll": sum(row["nll"] for row in last) / len(last),
        "accuracy": sum(row["accuracy"] for row in last) / len(last),
        "examples": result.examples,
        "truncated": result.truncated,
        "stopped_early": result.stopped_early,
        "evaluation": result.evaluation,
    }


def _facts(summary: Mapping[str, Any], label: str) -> dict[str, str]:
    episodes = summary["averaged_episodes"]
    over = f"on average over the last {episodes} episodes" if episodes > 1 else "in the last episode"
    facts = {
        "run": summary["run"],
        "method": label,
        "episodes": f"{summary['episodes']:,}, of {count(summary['tasks'], 'task')}",
        "gradient steps": f"{summary['gradient_steps']:,}",
        "tokens": f"{summary['tokens']:,}",
        "time": in_words(summary["seconds"]),
        "NLL": f"{summary['nll']:.3f} nats per training example, {over}",
        "accuracy": f"{summary['accuracy']:.3f} on the same examples",
        "report": summary["report"],
    }
    if row := summary["evaluation"]:
        asked = f"{row['num_examples']} questions of {count(row['num_tasks'], 'validation task')}"
        facts["validation"] = (
            f"NLL {row['nll']:.3f}, accuracy {row['accuracy']:.3f} on {asked}; theta of after episode {row['episode']}"
        )
    if summary["stopped_early"]:
        facts["stopped early"] = "no better evaluation; --resume with a larger --early-stopping-patience goes on"
    if summary["truncated"]:
        facts["truncated"] = cut_in_words(summary["truncated"], summary["examples"])
    return facts
