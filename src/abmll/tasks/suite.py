"""A suite with its tasks: those to learn from, and unseen ones to be evaluated on (``definition`` reads its file)."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from abmll.common.errors import ConfigError, DataError, nearest
from abmll.common.files import cache_dir
from abmll.tasks.bigbench import bigbench_dir
from abmll.tasks.collection import collection_folders, collection_with
from abmll.tasks.definition import SuiteFile, read_suite
from abmll.tasks.labelled import shortened
from abmll.tasks.leaks import refuse_leaks
from abmll.tasks.mapping import ColumnMapping
from abmll.tasks.read import load_task, load_tasks
from abmll.tasks.rows import SUFFIXES, stem_of, suffix_of
from abmll.tasks.shelf import Shelf
from abmll.tasks.types import Task


@dataclass(frozen=True)
class Suite:
    """Tasks to learn from and unseen tasks to be evaluated on.

    ``missing`` names tasks that could not be found, ``known_leaks`` evaluation tasks that are not quite unseen: whoever
    shows results shows both. The other fields are those of the suite's file.
    """

    name: str
    description: str
    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    prompt: dict[str, Any] = field(default_factory=dict)
    adapt_examples: int | None = None
    test_examples: int | None = None
    validation: tuple[str, ...] = ()
    known_leaks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def refuse_leaks(self) -> None:
        """Raise ``DataError`` where training and evaluation tasks overlap, but for the known leaks."""
        refuse_leaks(self.train, [task for task in self.evaluation if task.name not in self.known_leaks])

    def for_tuning(self) -> "Suite":
        """The validation tasks in the role of the evaluation tasks, which are gone, and the others to learn from.

        Raises ``ConfigError`` where the suite has none.
        """
        if not self.validation:
            raise ConfigError(
                f"suite '{self.name}' has no validation tasks to choose settings on; name some in its YAML"
            )
        chosen, others = set(self.validation), tuple(task for task in self.train if task.name not in self.validation)
        held_out = tuple(task for task in self.train if task.name in chosen)
        return replace(self, name=f"{self.name}-validation", train=others, evaluation=held_out, known_leaks=())


def load_suite(
    name_or_path: str | Path,
    data_dir: Path | str | None = None,
    *,
    allow_missing: bool = False,
    column_mapping: ColumnMapping | None = None,
    announce: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Suite:
    """The suite with its tasks loaded.

    Args:
        name_or_path: a shipped suite's name, or a YAML file.
        data_dir: folder of the tasks, searched with its subfolder ``tasks``. By default the suite's own source; where
            that is a folder, ``$ABMLL_DATA`` goes before the suite's. What is not there is looked for in the cache's
            folder ``tasks``, in the collections that were fetched into it, and then on the hub, where the suite names a
            dataset.
        allow_missing: go on without the tasks that are nowhere, and name them in ``Suite.missing``.
        column_mapping: that of every task's file, as for ``load_tasks``.
        announce: told in one line each what is downloaded, and what is left out.
        quiet: show no progress of a download.

    Raises:
        ConfigError: unknown or malformed keys of the YAML.
        DataError: no such suite, tasks that cannot be found (with the nearest name) or read, tasks not yet fetched.
    """
    file = read_suite(name_or_path)
    if data_dir is None and file.source != "bigbench":
        data_dir = os.environ.get("ABMLL_DATA")
    available = {stem_of(path): path for folder in _folders(file, data_dir) for path in _task_files(folder)}
    missing: list[str] = []
    how: dict[str, Any] = {"column_mapping": column_mapping, "announce": announce, "quiet": quiet}
    shelf = Shelf()
    train, evaluation = (_load(file, side, available, missing, how, shelf) for side in ("train", "evaluation"))
    if missing and not allow_missing:
        raise DataError(_refusal(file, missing, available))
    missing = list(dict.fromkeys(missing))
    if missing:
        announce(f"{file.where}: not found, and left out: {shortened(missing)}")
    for side, tasks in (("training", train), ("evaluation", evaluation)):
        if not tasks:
            raise DataError(f"{file.where}: not one of its {side} tasks was found; name their folder with --data-dir")
    return Suite(
        name=file.name,
        description=file.description,
        train=train,
        evaluation=evaluation,
        prompt=file.prompt,
        adapt_examples=file.adapt_examples,
        test_examples=file.test_examples,
        validation=tuple(name for name in file.validation if name not in missing),
        known_leaks=tuple(name for name in file.known_leaks if name not in missing),
        missing=tuple(missing),
    )


def _folders(file: SuiteFile, data_dir: Path | str | None) -> list[Path]:
    """Where to look for the tasks; a later folder goes before an earlier one."""
    root = cache_dir() / "tasks"
    cached = [*collection_folders().values(), root]
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise DataError(f"{data_dir}: no such folder (the tasks of suite '{file.name}' are looked for there)")
        return [*cached, Path(data_dir), Path(data_dir) / "tasks"]
    if file.source == "bigbench":
        if not (bigbench_dir() / "manifest.json").is_file():
            raise DataError(f"suite '{file.name}' needs the BIG-bench tasks; run: abmll tasks fetch bigbench")
        return [bigbench_dir()]
    if file.folder is not None:
        return [*cached, file.folder, file.folder / "tasks"]
    if not root.is_dir() and not file.hub:
        wanted = dict.fromkeys(map(collection_with, (*file.train, *file.evaluation)))
        commands = " and ".join(f"abmll tasks fetch {name}" for name in wanted if name)
        fetch = f", or run {commands}" if commands else ""
        raise DataError(
            f"suite '{file.name}' needs a folder with its tasks; name it with --data-dir or ABMLL_DATA{fetch}"
        )
    return cached


def _task_files(folder: Path) -> list[Path]:
    # Sorted by preference: where a task lies there in several formats, the first of SUFFIXES goes last and wins.
    found = [file for file in folder.iterdir() if suffix_of(file)] if folder.is_dir() else []
    return sorted(found, key=lambda file: (-SUFFIXES.index(suffix_of(file)), file.name))


def _load(
    file: SuiteFile, side: str, available: dict[str, Path], missing: list[str], how: dict[str, Any], shelf: Shelf
) -> tuple[Task, ...]:
    """The tasks of one side that are somewhere, read as ``how`` says; other names are added to ``missing``."""
    tasks = []
    for name in getattr(file, side):
        if name in available:
            tasks.append(shelf.put(load_task(available[name], name=name, **how)))
        elif name in file.hub:
            tasks.append(shelf.put(_from_hub(name, file.hub[name], how)))
        else:
            missing.append(name)
    return tuple(tasks)


def _from_hub(name: str, dataset: str, how: dict[str, Any]) -> Task:
    tasks = load_tasks(f"hf:{dataset}", **how)
    if len(tasks) > 1:
        raise DataError(f"hf:{dataset}: holds {len(tasks)} tasks, but is named as the one task '{name}'; name another")
    return replace(tasks[0], name=name)


def _refusal(file: SuiteFile, missing: Sequence[str], available: dict[str, Path]) -> str:
    side = "training" if missing[0] in file.train else "evaluation"
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    hint = nearest(missing[0], available)
    fetch = f", run abmll tasks fetch {found}" if (found := collection_with(missing[0])) else ""
    remedy = f"Add its file{fetch}, or say --allow-missing to go on without"
    return f"{file.where}: no {side} task '{missing[0]}'{more}.{hint} {remedy}"
