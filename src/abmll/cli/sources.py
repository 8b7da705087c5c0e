"""What a user means by WHERE: files, folders, Hugging Face datasets, collections, suites; and what a suite sets."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from abmll.cli.console import announce
from abmll.common.errors import ConfigError, DataError, nearest
from abmll.common.presets import preset

if TYPE_CHECKING:
    from abmll.tasks import Task
    from abmll.tasks.mapping import ColumnMapping

COLLECTION = "bigbench"


def is_suite(where: str) -> bool:
    """Whether `where` means a suite: a YAML file, or the name of a shipped one where no file or folder has it.

    The collection and the suite of some of its tasks share a name; the suite is ``suite:bigbench`` here. Of the other
    names that a suite and a collection share the suite is meant.
    """
    from abmll.tasks import shipped_suites

    if where.startswith("suite:") or where.endswith((".yaml", ".yml")):
        return True
    return where in shipped_suites() and where != COLLECTION and not _is_place(where)


class Reading(NamedTuple):
    """How tasks are read, as ``abmll.tasks.load_tasks`` takes it."""

    column_mapping: "ColumnMapping | None" = None
    announce: Callable[[str], None] = announce
    quiet: bool = False
    generate: bool = False

    def of_suite(self) -> dict[str, Any]:
        """The same for a suite, whose files say themselves what is written. Raises ``ConfigError`` for ``generate``."""
        if self.generate:
            raise ConfigError("generate: a suite's files say themselves what is written; leave it out")
        return {name: value for name, value in self._asdict().items() if name != "generate"}


def read_tasks(
    where: str, how: Reading | None = None, data_dir: Path | None = None, allow_missing: bool = False
) -> "list[Task]":
    """The tasks that `where` stands for; of a suite the training tasks, then the evaluation tasks.

    ``data_dir`` and ``allow_missing`` are for a suite's tasks; ConfigError where there is a folder and no suite.

    It is looked up in this order: a suite's YAML file, a dataset (``hf:NAME``), a file or folder, a shipped suite, a
    fetched collection, one of their tasks by name. DataError where it is none of these, or cannot be read.
    """
    from abmll.tasks import load_suite, load_tasks, shipped_suites
    from abmll.tasks.collection import collection_folders

    how = how or Reading()
    if is_suite(where):
        suite = load_suite(where, data_dir, allow_missing=allow_missing, **how.of_suite())
        return [*suite.train, *suite.evaluation]
    if data_dir is not None:
        raise ConfigError(f"data_dir is {data_dir}, but '{where}' is no suite whose tasks are looked up; leave it out")
    if _is_place(where):
        return load_tasks(where, **how._asdict())
    fetched = collection_folders()
    if where in fetched:
        if not fetched[where].is_dir():
            raise DataError(f"the tasks of '{where}' are not here yet; run 'abmll tasks fetch {where}' first")
        return load_tasks(fetched[where], **how._asdict())
    for folder in fetched.values():
        if (folder / f"{where}.jsonl").is_file():
            return load_tasks(folder / f"{where}.jsonl", **how._asdict())
    path = Path(where)
    known = [*shipped_suites(), *fetched]
    hint = nearest(where, known) or nearest(path.name, [sibling.name for sibling in path.parent.glob("*")])
    raise DataError(f"{where}: no such file, folder or suite.{hint} Suites at hand: {', '.join(shipped_suites())}")


def training_tasks(where: str, data_dir: Path | None, allow_missing: bool, how: Reading) -> "list[Task]":
    """The tasks to learn from: of a suite its training tasks, which must not overlap with its evaluation tasks."""
    from abmll.tasks import load_suite

    if not is_suite(where):
        return read_tasks(where, how, data_dir)
    suite = load_suite(where, data_dir, allow_missing=allow_missing, **how.of_suite())
    suite.refuse_leaks()
    return list(suite.train)


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a verb that has a preset, where the user says nothing else, from the ``values`` known so far.

    They are the prompt of the suite that it works on, over it the preset's, over that the suite's numbers of examples.
    """
    from abmll.tasks.definition import read_suite

    if "preset" not in values:
        return {}
    layers, where = preset(values["preset"]), values.get("suite") or values.get("tasks")
    if where is not None and ("suite" in values or is_suite(where)):
        suite = read_suite(where)
        layers = suite.prompt | layers | suite.caps
    return {name: value for name, value in layers.items() if name in values}


def choose(tasks: "list[Task]", name: str | None, where: str) -> "Task":
    """The task of that name, or the only one; DataError names the nearest, or asks for a name."""
    names = [task.name for task in tasks]
    if name is None and len(tasks) == 1:
        return tasks[0]
    if name is None:
        raise DataError(f"{where} has {len(tasks)} tasks; choose one with --task ({', '.join(names[:3])}, ...)")
    if name not in names:
        raise DataError(f"{where} has no task '{name}'.{nearest(name, names)}")
    return tasks[names.index(name)]


def _is_place(where: str) -> bool:
    from abmll.tasks.hub_name import is_hub

    return is_hub(where) or Path(where).exists()
