"""Which examples of an unseen task are adapted to, and which are asked."""

from collections.abc import Sequence

from abmll.common.config import EvaluateConfig
from abmll.common.errors import DataError
from abmll.tasks.order import permutation
from abmll.tasks.types import Example, Task, first_unanswered


def choose_examples(task: Task, config: EvaluateConfig, seed: int) -> tuple[list[Example], list[Example]]:
    """The examples to adapt to and those to be evaluated on: the first so many of a seeded order of either split."""
    support = _first(task, task.train, config.adapt_examples, seed, "training")
    return support, _first(task, task.test, config.test_examples, seed, "test")


def _first(task: Task, examples: Sequence[Example], limit: int | None, seed: int, side: str) -> list[Example]:
    if not examples or first_unanswered(examples) is not None:
        raise DataError(f"{task.source or task.name}: evaluation needs labelled {side} examples")
    return [examples[index] for index in permutation(len(examples), seed, "evaluation", side)[:limit]]
