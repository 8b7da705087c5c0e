"""The limited-data setting: each task keeps a few of its training examples, the same ones for every method."""

from dataclasses import replace

from abmll.tasks.order import permutation
from abmll.tasks.task import Task


def limit_train(task: Task, limit: int | None, seed: int) -> Task:
    """The task with at most ``limit`` of its training examples, the first of an order that ``seed`` determines.

    A smaller limit keeps a part of what a larger one keeps. None changes nothing; the test examples all stay.
    """
    if limit is None or len(task.train) <= limit:
        return task
    chosen = sorted(permutation(len(task.train), seed, "limit", task.name)[:limit])
    sides = {"train": task.train.select(chosen), "test": task.test}
    examples = tuple(replace(example, split=side) for side, kept in sides.items() for example in kept)
    return replace(task, examples=examples)
