"""Which tasks a training learns from, and on which it is evaluated meanwhile."""

from pathlib import Path
from typing import TYPE_CHECKING

from abmll.cli.sources import Reading, is_suite, read_tasks, training_tasks
from abmll.common.config import TrainConfig

if TYPE_CHECKING:
    from abmll.tasks import Task


def tasks_of_training(
    where: str,
    eval_where: str | None,
    settings: TrainConfig,
    data_dir: Path | None,
    allow_missing: bool,
    how: Reading,
) -> "tuple[list[Task], list[Task]]":
    """The training tasks in ``where`` and the validation tasks in ``eval_where``.

    A suite's validation tasks are some of its training tasks: they are not learned from where they are evaluated on.
    They are those of ``where`` if nothing else is named and ``settings`` need some. Raises ``DataError`` where the two
    sides share tasks or examples, ``ConfigError`` where a suite has no validation tasks.
    """
    from abmll.tasks import load_suite, refuse_leaks
    from abmll.training.validation import needs_tasks

    if eval_where is None and needs_tasks(settings) and is_suite(where):
        eval_where = where
    if eval_where is None:
        return training_tasks(where, data_dir, allow_missing, how), []
    if eval_where == where and is_suite(where):
        suite = load_suite(where, data_dir, allow_missing=allow_missing, **how.of_suite())
        suite.refuse_leaks()
        chosen = suite.for_tuning()
        return list(chosen.train), list(chosen.evaluation)
    of_training = data_dir if is_suite(where) or not is_suite(eval_where) else None  # a file's tasks are not looked up
    train = training_tasks(where, of_training, allow_missing, how)
    if is_suite(eval_where):
        suite = load_suite(eval_where, data_dir, allow_missing=allow_missing, **how.of_suite())
        held_out = list(suite.for_tuning().evaluation)
    else:
        held_out = read_tasks(eval_where, how)
    refuse_leaks(train, held_out)
    return train, held_out
