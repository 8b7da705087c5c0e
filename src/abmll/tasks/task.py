"""What a task is: multiple-choice examples under one name, with a fixed split into training and test examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from abmll.common.errors import DataError
from abmll.tasks.example import Example, Split, content_hash
from abmll.tasks.packed import PackedExamples

TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class Task:
    """A named collection of examples.

    Args:
        name: shown to the model in front of every input.
        examples: in the order of their file; ids are distinct. They are held packed: reading makes new, equal objects.
        family: tasks of one family are variants of each other; a suite keeps a family on one side.
        source: where it was read, for error messages.

    Raises:
        DataError: no examples, duplicate ids, or a ``split`` on some examples and not on others.
    """

    name: str
    examples: Sequence[Example]
    family: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        where = self.source or f"task '{self.name}'"
        if not self.examples:
            raise DataError(f"{where}: no examples")
        if not isinstance(self.examples, PackedExamples):  # such are another task's, and were checked there
            _check_together(self.examples, where)
            object.__setattr__(self, "examples", PackedExamples(self.examples))

    @property
    def train(self) -> PackedExamples:
        """The examples to learn from."""
        return self._split[0]

    @property
    def test(self) -> PackedExamples:
        """The examples to be evaluated on."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[PackedExamples, PackedExamples]:
        examples = self.examples
        assert isinstance(examples, PackedExamples)
        marks = [example.split for example in examples]
        sides = marks if marks[0] is not None else split_by_content(examples)
        train, test = ([index for index, side in enumerate(sides) if side == one] for one in ("train", "test"))
        return examples.select(train), examples.select(test)


def _check_together(examples: Sequence[Example], where: str) -> None:
    ids: set[str] = set()
    for example in examples:
        if example.id in ids:
            raise DataError(f"{where}: id {example.id!r} occurs twice; make ids unique or leave them out")
        ids.add(example.id)
    marked = sum(example.split is not None for example in examples)
    if 0 < marked < len(examples):
        raise DataError(f"{where}: {marked} of {len(examples)} examples carry a 'split'; give it to all or to none")


def split_by_content(examples: Sequence[Example]) -> tuple[Split, ...]:
    """A side for each example: the 80 % of the distinct contents with the smallest hashes are for training.

    The order of the examples plays no part, copies of one example stay on one side, and both sides get something as
    soon as there are two distinct examples.
    """
    hashes = [content_hash(example) for example in examples]
    ranked = sorted(set(hashes))
    num_train = min(max(round(TRAIN_SHARE * len(ranked)), 1), max(len(ranked) - 1, 1))
    train = set(ranked[:num_train])
    return tuple("train" if key in train else "test" for key in hashes)
