"""What a user means by WHERE: files and folders, Hugging Face datasets, fetched collections, suites."""

from pathlib import Path
from typing import TYPE_CHECKING

from abmll.errors import DataError, nearest

if TYPE_CHECKING:
    from abmll.tasks import Task

COLLECTION = "bigbench"


def is_suite(where: str) -> bool:
    """Whether `where` means a suite (a YAML file or a suite's name) and not a place where tasks lie."""
    return where.endswith((".yaml", ".yml")) or not (where.startswith("hf:") or Path(where).expanduser().exists())


def read_tasks(where: str) -> "list[Task]":
    """The tasks that `where` stands for; of a suite the training tasks, then the evaluation tasks.

    It is looked up in this order: a dataset (``hf:NAME``), a file or folder, the fetched collection (``bigbench``), one
    of its tasks by name, a suite by name or YAML file. DataError where it is none of these, or cannot be read.
    """
    from abmll.tasks import load_suite, load_tasks
    from abmll.tasks.bigbench import bigbench_dir

    fetched = bigbench_dir()
    if not is_suite(where):
        return load_tasks(where)
    if where == COLLECTION:
        if not fetched.is_dir():
            raise DataError(f"the tasks of '{COLLECTION}' are not here yet; run 'abmll tasks fetch {COLLECTION}' first")
        return load_tasks(fetched)
    if (fetched / f"{where}.jsonl").is_file():
        return load_tasks(fetched / f"{where}.jsonl")
    suite = load_suite(where)
    return [*suite.train, *suite.evaluation]


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
