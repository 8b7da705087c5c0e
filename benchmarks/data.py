"""Cells on data: what padding costs; and tasks of any number and size, cut from real ones."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from abmll.common.documents import write_json_lines
from abmll.language.batch import batches_of_like_length, shared_prefix
from abmll.language.encoding import Encoded
from abmll.tasks import Example, Task
from benchmarks.bench import Bench
from benchmarks.contenders import NUMBERS, Ours, Setting, batches_of
from benchmarks.pairs import Spread
from benchmarks.rows import Row, compared


def padding(bench: Bench, setting: Setting) -> list[Row]:
    """Positions that pass through the model / tokens there are, in training batches and in prediction."""
    ours = Ours(bench, setting)
    scorer = ours.model.scorer
    training = [batches_of(ours, number)[0] for number in range(NUMBERS)]
    asked = []
    for task in bench.workload.evaluation:
        encoded = scorer.encode(task.test[:32], task.name)
        prefix = shared_prefix([one.prompt for one in encoded])
        asked += [[encoded[index] for index in batch] for batch in batches_of_like_length(encoded, 2048, prefix)]
    rows = []
    for name, batches in (("training", training), ("prediction", asked)):
        computed = [scorer.batch(batch).input_ids.numel() for batch in batches]
        real = [sum(map(len, batch)) for batch in batches]  # a prefix that a batch shares counts for each example
        rows.append(_share(name, computed, real, 1.03))
    usual = [len(batch) * max(map(answered, batch)) for batch in training]
    needed = [sum(map(answered, batch)) for batch in training]
    return [*rows, _share("training, PEFT LoRA + Trainer", usual, needed)]


def _share(name: str, computed: Sequence[int], real: Sequence[int], target: float | None = None) -> Row:
    """All batches together, with the least and the greatest of a single batch."""
    each = [one / other for one, other in zip(computed, real, strict=True)]
    spread = Spread(sum(computed) / sum(real), min(each), max(each))
    return compared(f"tokens computed / real tokens, {name}", spread, sum(computed), sum(real), "tokens", target)


def answered(example: Encoded) -> int:
    """Tokens of prompt and right answer."""
    assert example.answer is not None
    return len(example.prompt) + len(example.options[example.answer])


def numbered(tasks: Sequence[Task]) -> Iterator[Example]:
    """The training examples of all tasks over and over, each with a number of its own in its text."""
    examples = [example for task in tasks for example in task.train]
    for number, example in enumerate(cycle(examples)):
        yield Example(str(number), f"({number}) {example.input}", example.options, example.answer)


def write_task(path: Path, examples: Iterator[Example] | Sequence[Example]) -> None:
    """A task file of ``examples``, all of them for training."""
    rows = (
        {"id": e.id, "input": e.input, "options": list(e.options), "answer": e.answer, "split": "train"}
        for e in examples
    )
    write_json_lines(path, rows)
