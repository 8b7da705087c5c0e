"""Leaks: what a suite's training tasks and its evaluation tasks must not share."""

from collections.abc import Sequence

from abmll.common.errors import DataError
from abmll.tasks.types import Task, content_hash


def check_leaks(train: Sequence[Task], evaluation: Sequence[Task]) -> list[str]:
    """One line for every task name, family, or group of examples that is on both sides; empty where nothing is.

    Two examples are the same if input and options are, after Unicode form, case, punctuation and white space are made
    equal and the options are put in order. Input and options count together: a short input such as "yes?", or the
    options "yes" and "no", are shared by many unrelated questions. Families are compared where both tasks carry one.
    """
    findings = []
    train_names = {task.name for task in train}
    families: dict[str, str] = {}
    owners: dict[str, str] = {}
    for task in train:
        if task.family is not None:
            families.setdefault(task.family, task.name)
        for example in task.examples:
            owners.setdefault(content_hash(example), task.name)
    for task in evaluation:
        if task.name in train_names:
            findings.append(f"task '{task.name}' is a training and an evaluation task")
        elif task.family in families:
            other = families[task.family]
            findings.append(
                f"evaluation task '{task.name}' is of the family '{task.family}' of training task '{other}'"
            )
        findings += _shared_examples(task, owners)
    return findings


def _shared_examples(task: Task, owners: dict[str, str]) -> list[str]:
    """A line for every training task that shares examples with this one; a task shared as a whole has its line."""
    shared: dict[str, list[str]] = {}
    for example in task.examples:
        owner = owners.get(content_hash(example))
        if owner is not None and owner != task.name:
            shared.setdefault(owner, []).append(example.id)
    return [
        f"evaluation task '{task.name}' shares {len(ids)} examples (such as '{ids[0]}') with training task '{owner}'"
        for owner, ids in shared.items()
    ]


def refuse_leaks(train: Sequence[Task], evaluation: Sequence[Task]) -> None:
    """Raise ``DataError`` with the first leak and the number of all, if there is any."""
    findings = check_leaks(train, evaluation)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise DataError(f"the evaluation would not be of unseen tasks: {findings[0]}{more}; leave it out of one side")
