"""What a training run demands of its tasks, checked before its first step."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from abmll.common.errors import DataError
from abmll.common.progress import progress
from abmll.language.encoding import Encoder
from abmll.tasks import Task
from abmll.tasks.types import first_unanswered

PORTION = 1024  # examples, of which the text is held at once
SHOW_PROGRESS = 10_000  # examples; fewer take about a second


def usable(tasks: Sequence[Task], min_examples: int) -> list[Task]:
    """The tasks in the order of their names.

    Raises ``DataError`` for no tasks, two of one name, no training examples at all, a task with fewer than
    ``min_examples``, an example without an answer, or tasks of which some are written and some chosen.
    """
    if not tasks:
        raise DataError("no training tasks; give at least one")
    ordered = sorted(tasks, key=lambda task: task.name)
    for name, count in Counter(task.name for task in ordered).items():
        if count > 1:
            raise DataError(f"{count} training tasks are called '{name}'; give each a name of its own")
    for task in ordered:
        if (example := first_unanswered(task.train)) is not None:
            raise DataError(f"{task.where}: training example '{example.id}' has no answer to learn from")
        if len(task.train) < min_examples:
            raise DataError(
                f"{task.where}: {len(task.train)} training examples, but this method needs at least {min_examples} of "
                "each task; add some, or leave the task out"
            )
    if len({task.is_written for task in ordered}) > 1:
        written, chosen = (next(task.name for task in ordered if task.is_written == kind) for kind in (True, False))
        raise DataError(f"the answers of '{written}' are written, those of '{chosen}' are chosen; train them apart")
    if not any(task.train for task in ordered):
        raise DataError("the training tasks have no training examples")
    return ordered


def fingerprint(tasks: Sequence[Task]) -> str:
    """SHA-256 of everything that training reads of the tasks: names and training examples, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(f"[{json.dumps(task.name)}, [".encode())
        for start in range(0, len(task.train), PORTION):
            rows = [(example.input, example.options, example.answer) for example in task.train[start : start + PORTION]]
            digest.update(f"{', ' if start else ''}{json.dumps(rows)[1:-1]}".encode())
        digest.update(b"]]")
    return digest.hexdigest()


def check_encodings(
    encoder: Encoder, tasks: Sequence[Task], drawn: Sequence[Sequence[int]], quiet: bool = True
) -> tuple[int, int]:
    """Encode once every training example that will be read, so that one that cannot be used is refused now.

    Args:
        drawn: which training examples of each task.

    Returns:
        Their number, and of how many the middle of the input is cut out.

    Raises:
        DataError: as ``Encoder.encode_all``, with the file that the example comes from.
    """
    count, truncated = sum(map(len, drawn)), 0
    with progress(count, "checking the examples", "example", quiet=quiet or count < SHOW_PROGRESS) as bar:
        for task, indices in zip(tasks, drawn, strict=True):
            try:
                for encoded in encoder.encode_all((task.train[index] for index in indices), task.name):
                    truncated += encoded.truncated > 0
                    bar.update()
            except DataError as error:
                raise DataError(f"{task.source}: {error}" if task.source else str(error)) from error
    return count, truncated
