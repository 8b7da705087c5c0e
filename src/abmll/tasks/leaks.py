"""Leaks: what a suite's training tasks and its evaluation tasks must not share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from abmll.common.errors import DataError
from abmll.tasks.types import Task

if TYPE_CHECKING:
    from abmll.tasks.digests import Digests


def check_leaks(train: Sequence[Task], evaluation: Sequence[Task]) -> list[str]:
    """One line for every task name, family, or group of examples that is on both sides; empty where nothing is.

    Two examples are the same if input and options are, after Unicode form, case, punctuation and white space are made
    equal and the options are put in order. Input and options count together: a short input such as "yes?", or the
    options "yes" and "no", are shared by many unrelated questions. Families are compared where both tasks carry one.
    """
    from abmll.tasks.digests import digests_of_task  # with NumPy, which most commands on tasks do without

    findings = []
    train_names = {task.name for task in train}
    families: dict[str, str] = {}
    for task in train:
        if task.family is not None:
            families.setdefault(task.family, task.name)
    asked = [digests_of_task(task) for task in evaluation]
    owners = _owners(train, asked)
    for task, digests in zip(evaluation, asked, strict=True):
        if task.name in train_names:
            findings.append(f"task '{task.name}' is a training and an evaluation task")
        elif task.family in families:
            other = families[task.family]
            findings.append(
                f"evaluation task '{task.name}' is of the family '{task.family}' of training task '{other}'"
            )
        findings += _shared_examples(task, digests.tolist(), owners)
    return findings


def _owners(train: Sequence[Task], asked: "Sequence[Digests]") -> dict[bytes, str]:
    """The first training task with each digest that is ``asked``, in memory that training examples do not change."""
    import numpy as np

    from abmll.tasks.digests import digests_of_task, found_in

    ordered = np.unique(np.concatenate(asked)) if asked else np.array([], "S1")
    owners: dict[bytes, str] = {}
    for task in train:
        digests = digests_of_task(task)
        for digest in digests[found_in(digests, ordered)].tolist():
            owners.setdefault(digest, task.name)
    return owners


def _shared_examples(task: Task, digests: Sequence[bytes], owners: dict[bytes, str]) -> list[str]:
    """A line for every training task that shares examples with this one; a task shared as a whole has its line."""
    shared: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        owner = owners.get(digest)
        if owner is not None and owner != task.name:
            shared.setdefault(owner, []).append(index)
    return [
        f"evaluation task '{task.name}' shares {len(indices)} examples (such as '{task.examples[indices[0]].id}') "
        f"with training task '{owner}'"
        for owner, indices in shared.items()
    ]


def refuse_leaks(train: Sequence[Task], evaluation: Sequence[Task]) -> None:
    """Raise ``DataError`` with the first leak and the number of all, if there is any."""
    findings = check_leaks(train, evaluation)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise DataError(f"the evaluation would not be of unseen tasks: {findings[0]}{more}; leave it out of one side")
