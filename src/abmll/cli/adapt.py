"""``abmll adapt``: learn one new task from its examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from abmll.cli.console import count, cut_in_words, narrator, print_result
from abmll.cli.shared_base import by_all_processes
from abmll.common.config import AUTO_THETA, ActivationCacheConfig, AdaptConfig, ContinueConfig, PlaceConfig, TableConfig
from abmll.common.errors import ConfigError, DataError
from abmll.common.locks import sole_writer

if TYPE_CHECKING:
    from abmll.cli.labelling import Task
    from abmll.cli.sources import Reading
    from abmll.tasks import Example


@by_all_processes
def adapt(
    task: Path,
    *,
    output_dir: Path,
    columns: TableConfig,
    column_mapping: tuple[str, ...] | None = None,
    theta: Path | None = Path(AUTO_THETA),
    adapt: Literal["head", "full"] | None = None,
    settings: AdaptConfig,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    method: str | None = None,
    continued: ContinueConfig,
    task_name: str | None = None,
    generate: bool = False,
    preset: str = "default",
    place: PlaceConfig,
    activations: ActivationCacheConfig,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    json: bool = False,
    explicit: frozenset[str] = frozenset(),
) -> None:
    """Learn a new task from its labelled examples; no training run is needed.

    Of a file whose examples carry a split only the training examples are used, of any other file all of them. Of a
    table with columns of your own the labelled rows are used. A dataset is hf:NAME[CONFIG], or :SPLIT behind it where
    that is not train.

    Args:
        task: file with the task's labelled examples, or a table of texts and labels, or a dataset (hf:NAME)
        output_dir: folder to write the posterior to
        adapt: head, a Bayesian classifier on the model's features, or full, gradient steps from the theta of a run
            (default: head, unless --method, --steps or --batch-size say how to take steps)
        gradient_checkpointing: with full, compute activations anew in the backward pass: less memory, more time, the
            same result
        compile: with full, compile a gradient step into one graph, which takes minutes at first; with other random
            numbers
        method: with full, how to learn it: abmll or abmll-mixture, from a run of abmll, or blob, laplace, ensemble,
            mc-dropout or regular-lora itself, from one of regular-lora (default: abmll-mixture, where the run is of
            abmll in weight space, or else the run's own)
        task_name: the task's name in the prompt (default: the file's)
        generate: the outputs are texts to be written, not chosen, whatever the file's form
        seed: seed of the order of the examples and of the noise
    """
    from abmll.cli.labelling import learn
    from abmll.cli.loading import features_of, is_named, load_learner, theta_name
    from abmll.cli.places import check_folder
    from abmll.cli.sources import Reading
    from abmll.language.activation_cache import disk_cache
    from abmll.methods import find_rule
    from abmll.tasks.mapping import parse_mapping
    from abmll.tasks.types import are_written

    refuse_run_as_task(task)
    how = Reading(parse_mapping(column_mapping), narrator(quiet), quiet, generate)
    name, examples, table = _read(task, task_name, columns, how)
    if are_written(examples):
        if not is_named(theta):
            raise ConfigError(f"{task}: its answers are written, which a training run learns: add --theta RUN")
        adapt = adapt or "full"
    check_folder(output_dir, overwrite, "posterior")
    with sole_writer(output_dir):
        meta = load_learner(theta, adapt, method, continued, place, quiet, explicit)
        if (columns.multi_label or columns.ordinal) and find_rule(meta.learning.method).classifier is None:
            raise ConfigError("multi_label, ordinal: only a head learns such labels; leave out what asks for steps")
        if gradient_checkpointing:
            meta.gradient_checkpointing_enable()
        if compile:
            meta.compile()
        cache = disk_cache(meta.scorer.base, meta.scorer.lower_blocks, activations, narrator(quiet))
        posterior = learn(table, examples, meta, name, seed, quiet, cache, settings)
        meta.scorer.base.settle()
        posterior.save_pretrained(output_dir, overwrite)
    has_head = posterior.head is not None
    summary = {
        "task": name,
        "method": meta.learning.method,
        "theta": theta_name(theta, place),
        "members": len(posterior.members),
        "examples": len(examples),
        "truncated": sum(one.truncated > 0 for one in meta.scorer.encode(examples, name)),
        "inverse_temperature": None if posterior.calibration is None else posterior.calibration.inverse_temperature,
        "steps": 0 if has_head else settings.steps,
        "output_dir": str(output_dir),
    }
    facts = {"posterior": str(output_dir), "task": f"{name}, {count(len(examples), 'example')}"}
    if has_head:
        facts["learned by"] = "a head, without gradient steps"
        facts["features"] = features_of(theta, place)
    else:
        batch = count(min(settings.batch_size, len(examples)), "example")
        facts["gradient steps"] = f"{settings.steps:,}, each on {batch}"
    if len(posterior.members) > 1:
        facts["members"] = f"{len(posterior.members)}, of so many steps each"
    if posterior.calibration is not None:
        facts["inverse temperature"] = posterior.calibration.describe()
    if summary["truncated"]:
        facts["truncated"] = cut_in_words(summary["truncated"], len(examples))
    print_result(summary, facts, quiet, json)


def _read(
    path: Path, task_name: str | None, columns: TableConfig, how: "Reading"
) -> "tuple[str, Sequence[Example], Task | None]":
    """The task's name, the examples to learn, and the table that they are from where it has columns of its own."""
    from abmll.cli.labelling import read_labelled
    from abmll.tasks.columns import is_task_file, read_table
    from abmll.tasks.hub_name import task_name as name_of
    from abmll.tasks.read import task_of

    as_it_is = read_table(path, how.column_mapping, split="train", announce=how.announce, quiet=how.quiet)
    if how.generate and columns != TableConfig():
        raise ConfigError("generate: reads the columns 'input' and 'output'; leave out what names or orders labels")
    if how.generate or (columns == TableConfig() and is_task_file(path, as_it_is)):
        loaded = task_of(as_it_is, path, name=task_name, announce=how.announce, generate=how.generate)
        examples = loaded.train if loaded.examples[0].split else loaded.examples
        if not examples:
            raise DataError(f"{path}: no training examples, every row has 'split': 'test'; mark some as 'train'")
        return loaded.name, examples, None
    table = read_labelled(as_it_is, columns, how.announce)
    return task_name or name_of(path), table.rows.examples(), table


def refuse_run_as_task(path: Path) -> None:
    """Raise ``ConfigError`` where a training run stands in the place of a task."""
    from abmll.model.run_folder import RunFolder

    if path.is_dir() and RunFolder(path).is_run():
        raise ConfigError(
            f"{path}: is a training run, not a task; say: abmll adapt TASK --theta {path} --output-dir ..."
        )
