"""``abmll evaluate``: adapt to every evaluation task of a suite, and measure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from abmll.cli.console import count, narrator, print_json, print_text
from abmll.common.config import (
    ActivationCacheConfig,
    ContinueConfig,
    EvaluateConfig,
    PlaceConfig,
    PredictConfig,
    WriteConfig,
)
from abmll.common.errors import ConfigError, DataError
from abmll.common.settings import flatten, pick

if TYPE_CHECKING:
    from abmll.tasks import Suite


def evaluate(
    run: Path,
    *,
    suite: str,
    output_dir: Path,
    settings: EvaluateConfig,
    writing: WriteConfig,
    adapt: Literal["head", "full"] | None = None,
    method: str | None = None,
    continued: ContinueConfig,
    place: PlaceConfig,
    activations: ActivationCacheConfig,
    data_dir: Path | None = None,
    allow_missing: bool = False,
    column_mapping: tuple[str, ...] | None = None,
    preset: str = "default",
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
    explicit: frozenset[str] = frozenset(),
) -> None:
    """Adapt to every evaluation task of a suite; writes metrics.json, predictions.jsonl and report.html.

    Where the tasks' answers are written, there is no report.html.

    Args:
        run: folder of a training run, or its name on a model hub, user/name or user/name@revision
        output_dir: folder to write to
        adapt: head or full, as for 'abmll adapt'
        method: with full, how to learn the tasks, as for 'abmll adapt' (default: abmll-mixture, where the run is of
            abmll in weight space, or else the run's own)
        seed: seed of the choice and order of examples and of the noise
    """
    from abmll.cli.loading import load_learner
    from abmll.cli.places import check_folder
    from abmll.cli.written_answers import evaluate_suite, refuse_unread
    from abmll.common.processes import together
    from abmll.experiments.few_shot import evaluate_tasks, save_evaluation
    from abmll.experiments.html import write_report
    from abmll.experiments.html.reading import Method
    from abmll.experiments.html.sections import headline, per_task
    from abmll.experiments.written_metrics import require_rouge
    from abmll.language.activation_cache import disk_cache
    from abmll.methods import find_rule
    from abmll.tasks import load_suite
    from abmll.tasks.mapping import parse_mapping
    from abmll.tasks.types import are_written

    with together() as processes:
        quiet = quiet or not processes.is_first
        say = narrator(quiet)
        with processes.agreed():
            mapping = parse_mapping(column_mapping)
            how: dict[str, Any] = {"allow_missing": allow_missing, "column_mapping": mapping, "announce": say}
            loaded = load_suite(suite, data_dir, **how, quiet=quiet)
            loaded.refuse_leaks()
            if processes.is_first:
                check_folder(output_dir, overwrite)
            written = are_written([task.examples[0] for task in loaded.evaluation])
            if written:
                refuse_unread(pick(PredictConfig, flatten(settings)), "written, not chosen", explicit)
                if processes.size > 1:
                    raise ConfigError(
                        "tasks whose answers are written are evaluated by one process; start it by itself"
                    )
                require_rouge()
                adapt = adapt or "full"
            else:
                refuse_unread(writing, "chosen, not written")
        model = load_learner(run, adapt, method, continued, place, quiet, explicit)
        processes = replace(processes, settle=model.scorer.base.settle)
        _refuse_learned(run, model.trained_on, loaded)
        for key, value in loaded.prompt.items():
            used = getattr(model.scorer.prompt, key)
            if value != used:
                say(f"the suite's prompt has {key} = {value}, but the run was trained with {used}, used here too")
        cache = disk_cache(model.scorer.base, model.scorer.lower_blocks, activations, say)
        about = {"run": str(run), "suite": loaded.name, "seed": seed}
        about |= {"missing": list(loaded.missing), "known_leaks": list(loaded.known_leaks)}
        if written:
            return evaluate_suite(
                model, loaded, settings, writing, output_dir, about, seed, cache, quiet=quiet, json=json
            )
        evaluation = evaluate_tasks(
            model, loaded.evaluation, settings, seed=seed, cache=cache, quiet=quiet, processes=processes
        )
        model.scorer.base.settle()
    if not processes.is_first:
        return None
    save_evaluation(evaluation, output_dir, model, settings, about)
    report = write_report(output_dir)
    if evaluation.truncated:
        say(f"{count(evaluation.truncated, 'input')} too long for the model, cut in the middle")
    if evaluation.left_out:
        say(f"{count(evaluation.left_out, 'demonstration')} left out, too long before their question")
    if json:
        numbers = {"mean": evaluation.mean, "pooled": evaluation.pooled, "tasks": evaluation.tasks}
        print_json({"output_dir": str(output_dir), "truncated": evaluation.truncated} | numbers)
    elif not quiet:
        one = Method(find_rule(model.learning.method).label, tasks=evaluation.tasks, mean=evaluation.mean)
        print(per_task([one]).text(), headline([one]).text(), sep="\n\n")
        print(f"\nmean over {count(len(evaluation.tasks), 'task')}, one seed ({seed})")
        if loaded.missing:
            print_text(f"missing tasks, not in these numbers: {', '.join(loaded.missing)}")
        print_text(f"report: {report}")


def _refuse_learned(run: Path, learned: Sequence[str], suite: "Suite") -> None:
    """Raise ``DataError`` where the run was trained on a task that it would be evaluated on."""
    for task in suite.evaluation:
        if task.name in learned and task.name not in suite.known_leaks:
            raise DataError(f"{run}: was trained on '{task.name}', an evaluation task of '{suite.name}'; leave it out")
