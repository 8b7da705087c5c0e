"""``abmll compare``: methods x seeds on a suite, as cells that are computed once, and the tables that follow."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from abmll.cli.console import narrator, print_json, print_text
from abmll.common.config import ActivationCacheConfig, ModelConfig
from abmll.common.errors import AbmllError, ConfigError, nearest
from abmll.common.settings import Checked, flatten, kinds_of, pick, setting
from abmll.experiments.budget import REFERENCE, SMOKE, SharedConfig

if TYPE_CHECKING:
    from abmll.experiments.cell_runner import ResultFolder
    from abmll.experiments.method_spec import ComparisonConfig


@dataclass(frozen=True)
class ComparisonFlags(Checked):
    """Methods and their settings, the same for 'abmll compare' and 'abmll tune'."""

    methods: tuple[str, ...] = setting(("all",), "all, or some, each as METHOD or METHOD@PRESET (abmll@paper-v3)")
    settings: Path | None = setting(None, "file with settings by method, as 'abmll tune' writes it")
    override: tuple[str, ...] | None = setting(
        None, "settings for all methods (learning_rate=1e-3) or one (abmll.beta=1e-7)"
    )
    data_dir: Path | None = setting(None, "folder in which the suite's tasks are looked up")
    allow_missing: bool = setting(False, "go on without tasks that are not found; every table names them")
    executor: Literal["local", "submitit", "ray"] = setting(
        "local", "who computes: processes here, jobs of Slurm, or tasks of Ray"
    )
    executor_options: tuple[str, ...] | None = setting(
        None, "what a job needs, each as NAME=VALUE (slurm_partition=gpu), or one YAML file"
    )
    jobs: int | None = setting(
        None, "at the same time: processes, each with one thread (default: 1), or jobs (default: all)", at_least=1
    )


def compare(
    *,
    suite: str,
    flags: ComparisonFlags,
    seeds: tuple[int, ...] = (0, 1, 2),
    output_dir: Path = Path("runs/compare"),
    shared: SharedConfig,
    activations: ActivationCacheConfig,
    reference: str | None = None,
    smoke: bool = False,
    dry_run: bool = False,
    explicit: frozenset[str] = frozenset(),
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Compare methods on the unseen tasks of a suite, over several seeds, under one budget.

    Each method and seed is a cell, a file that is computed once: the same command goes on where it was stopped, and
    more methods, seeds or values cost only what is new.

    Args:
        seeds: seeds; each decides initialisation, order, noise, and which examples are chosen
        output_dir: folder for cells, training runs, tables and report
        reference: row of the tables that the others are compared with, as METHOD, METHOD@PRESET or METHOD+RECALIBRATION
            (default: abmll)
        smoke: rehearse it in OUTPUT_DIR-smoke, in seconds or minutes: a random model, generated tasks, a step or two
        dry_run: compute nothing and need no tasks: print what every row would cost on a GPU, and stop
    """
    from abmll.cli.dry_run import show_costs
    from abmll.cli.places import resumable
    from abmll.experiments.execution import compute
    from abmll.experiments.executors.choice import choose
    from abmll.experiments.html import write_report
    from abmll.experiments.markdown import against_reference, headline, notes, write_tables
    from abmll.experiments.planning import plan
    from abmll.experiments.published import beside_published
    from abmll.experiments.summary import summarize

    if dry_run and shared.dtype == "auto":
        shared = replace(shared, dtype="bf16")  # the GPU's, not this computer's
    if smoke:
        output_dir, suite, flags, shared = rehearsal(output_dir, suite, flags, shared)
    results, config = prepare(output_dir, suite, flags, seeds, shared, activations, explicit)
    if dry_run:
        show_costs(suite, config, quiet, json)
        return 0
    executor = choose(flags.executor, flags.executor_options or (), flags.jobs, output_dir)
    loaded = results.load_suite()
    cells = plan(loaded, config)
    rows = {cell.row for cell in cells}
    if reference is not None and reference not in rows:
        hint = nearest(reference, rows)
        raise ConfigError(f"reference: the tables have no row '{reference}', only {', '.join(sorted(rows))}.{hint}")
    with resumable(output_dir):
        failures = compute(cells, results, executor, narrator(quiet), quiet)
    comparison = summarize(cells, output_dir, loaded, failures, reference or REFERENCE)
    if not comparison["methods"]:
        raise AbmllError(f"{output_dir}: no method could be evaluated: {failures[0].error}")
    written = [*write_tables(comparison, output_dir), write_report(output_dir)]
    if json:
        print_json(comparison)
    elif not quiet:
        for table in filter(None, [headline(comparison), beside_published(comparison), against_reference(comparison)]):
            print_text(f"{table.title}\n{table.text()}\n")
        print_text("\n".join([*notes(comparison), f"written: {', '.join(map(str, written))}"]))
    return 2 if failures else 0


def rehearsal(
    folder: Path, suite: str, flags: ComparisonFlags, shared: SharedConfig
) -> tuple[Path, str, ComparisonFlags, SharedConfig]:
    """The same comparison in a folder of its own, on a random model and generated tasks (see ``smoke``)."""
    from abmll.cli.places import check_folder
    from abmll.experiments.smoke import rehearse

    whole = folder if folder.name not in ("", "..") else folder.resolve()
    if not whole.name:
        raise ConfigError(f"output_dir: {folder} has no folder beside it for a rehearsal; name another one")
    folder = whole.with_name(f"{whole.name}{SMOKE}")
    check_folder(folder, overwrite=True)  # its own earlier results
    path, small = rehearse(folder, suite, shared)
    return folder, str(path), replace(flags, data_dir=folder / "tasks"), small


def prepare(
    folder: Path,
    suite: str,
    flags: ComparisonFlags,
    seeds: Sequence[int],
    shared: SharedConfig,
    activations: ActivationCacheConfig,
    explicit: frozenset[str],
    validation: bool = False,
) -> "tuple[ResultFolder, ComparisonConfig]":
    """Check the folder, and read what is compared in it; ``explicit`` names what the user set."""
    from abmll.cli.places import check_folder
    from abmll.experiments.cell_runner import ResultFolder
    from abmll.experiments.method_spec import ComparisonConfig, defaults, parse_specs, read_settings_file
    from abmll.language.base import resolve_device, resolve_dtype

    check_folder(folder, overwrite=True)  # its own earlier results
    command = shlex.join(["abmll", *sys.argv[1:]])
    base, places = pick(ModelConfig, vars(shared)), (flags.data_dir, flags.allow_missing)
    results = ResultFolder(folder, suite, base, activations, command, *places, validation)
    if len(set(seeds)) < len(seeds):
        raise ConfigError("seeds: one is named twice; remove one")
    given = flatten(shared)
    if flags.executor == "local" or given["dtype"] == "auto":  # else the device is that of the jobs
        given["dtype"] = resolve_dtype(given["dtype"], resolve_device(given["device"]))
    specs = parse_specs(flags.methods)
    own = read_overrides(flags.override or ())
    asked = {name: value for name, value in given.items() if name in explicit} | own.pop("", {})
    tuned = {} if flags.settings is None else read_settings_file(flags.settings)
    return results, ComparisonConfig(specs, seeds, defaults() | given, tuned, asked, own)


def read_overrides(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``NAME=VALUE`` under "", ``METHOD.NAME=VALUE`` under the method; ConfigError for what is neither."""
    from abmll.experiments.method_spec import KINDS, parse_spec

    known = {name: kind for config in KINDS for name, kind in kinds_of(config).items()}
    own: dict[str, dict[str, Any]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        method, _, name = left.strip().rpartition(".")
        if not equals or name not in known:
            hint = nearest(name, known) or " Give NAME=VALUE or METHOD.NAME=VALUE"
            raise ConfigError(f"override: '{text}' is no setting.{hint}")
        if method:
            parse_spec(method)  # one that is not compared may have settings in a file that is used for fewer
        try:
            own.setdefault(method, {})[name] = known[name].read([value.strip()])
        except ValueError as error:
            raise ConfigError(f"override: {left.strip()} {error}") from error
    return own
