"""What an example and a task are, and what makes two examples the same."""

import hashlib
import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

from abmll.common.errors import DataError

Split = Literal["train", "test"]
SIDES = get_args(Split)
MAX_OPTIONS = 200
TRAIN_SHARE = 0.8

# Only the marks of prose: without "+", "-", "(" or "<" different sums and programs would become one.
_PUNCTUATION = re.compile("[.,;:!?\"'‘’“”„…]+")  # noqa: RUF001 (these marks are meant)


@dataclass(frozen=True, slots=True)
class Example:
    """One multiple-choice question.

    Args:
        id: unique within its task.
        input: the question; may be empty where the options say it all, but not white space alone.
        options: 2 to 200 distinct texts, not blank (compared without surrounding white space).
        answer: index of the right option, or None where it is not known.
        split: the side that the data's author put it on, if any.

    Raises:
        DataError: whichever of these does not hold; the reader of a file adds file and line.
    """

    id: str
    input: str
    options: tuple[str, ...]
    answer: int | None
    split: Split | None = None

    def __post_init__(self) -> None:
        self._check_question()
        if self.answer is not None and not 0 <= self.answer < len(self.options):
            raise DataError(
                f"answer {self.answer} is out of range: {len(self.options)} options count from 0 to "
                f"{len(self.options) - 1}"
            )
        if self.split is not None and self.split not in SIDES:
            raise DataError(f"split is {self.split!r}; use 'train' or 'test'")

    def _check_question(self) -> None:
        if self.input and not self.input.strip():
            raise DataError("the input is white space alone; give the question, or leave it empty")
        _check_options(self.options)

    @property
    def asked(self) -> tuple[str, ...]:
        """The options, where they are part of the question."""
        return self.options


@dataclass(frozen=True, slots=True)
class WrittenExample(Example):
    """A question whose answer is written, not chosen: its only option is the text to be written.

    ``WrittenExample.of`` makes it of input and output. Where the output is not known there is no option.
    """

    @classmethod
    def of(cls, id: str, input: str, output: str | None, split: Split | None = None) -> "WrittenExample":
        """The example of an input, not blank, and of its output (None: not known)."""
        return cls(id, input, () if output is None else (output,), None if output is None else 0, split)

    def _check_question(self) -> None:
        if not self.input.strip():
            raise DataError("the input is empty; give the question whose answer is to be written")
        if len(self.options) > 1 or (self.answer is None) != (len(self.options) == 0):
            raise DataError(f"{len(self.options)} options; a written answer has its output alone, or is not known")
        if any(not output.strip() for output in self.options):
            raise DataError("the output is empty; give the text to be written")

    @property
    def output(self) -> str | None:
        """The text to be written; None where it is not known."""
        return self.options[0] if self.options else None

    @property
    def asked(self) -> tuple[str, ...]:
        """Nothing: a question with another output is the same question."""
        return ()


class ExampleStore(Sequence[Example]):
    """The examples of a task that are not held in memory (``abmll.tasks.stored``); they were checked before.

    ``are_written`` says whether their answers are written; ``answered``, that every one has its answer.
    """

    are_written: bool
    answered: bool

    @abstractmethod
    def side(self, side: Split) -> Sequence[Example]:
        """The examples on a side of their task."""

    @abstractmethod
    def digests(self) -> bytes:
        """The first 16 bytes of the ``content_digest`` of every example, one behind the other."""


def _check_options(options: tuple[str, ...]) -> None:
    if len(options) < 2:
        raise DataError(f"{len(options)} option{'s' * (not options)}; a question needs at least 2")
    if len(options) > MAX_OPTIONS:
        raise DataError(f"{len(options)} options; at most {MAX_OPTIONS} are possible")
    stripped = [option.strip() for option in options]
    if all(stripped) and len(set(stripped)) == len(stripped):
        return
    for index, option in enumerate(stripped):
        if not option:
            raise DataError(f"option {index} is empty; give every option a text")
        if option in stripped[:index]:
            twin = stripped.index(option)
            raise DataError(f"options {twin} and {index} are both {option[:60]!r}; make them distinct")


@dataclass(frozen=True)
class Task:
    """Examples under one name, with a fixed split into training and test examples.

    Args:
        name: shown to the model in front of every input.
        examples: in the order of their file; ids are distinct. A tuple, or an ``ExampleStore``.
        family: tasks of one family are variants of each other; a suite keeps a family on one side.
        source: where it was read, for error messages.

    Raises:
        DataError: no examples, duplicate ids, a ``split`` on some examples and not on others, or answers of which
            some are written and some chosen.
    """

    name: str
    examples: Sequence[Example]
    family: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.examples, ExampleStore):
            return
        object.__setattr__(self, "examples", tuple(self.examples))
        if not self.examples:
            raise DataError(f"{self.where}: no examples")
        ids: set[str] = set()
        for example in self.examples:
            if example.id in ids:
                raise DataError(f"{self.where}: id {example.id!r} occurs twice; make ids unique or leave them out")
            ids.add(example.id)
        marked = sum(example.split is not None for example in self.examples)
        if 0 < marked < len(self.examples):
            raise DataError(
                f"{self.where}: {marked} of {len(self.examples)} examples carry a 'split'; give it to all or to none"
            )
        try:
            are_written(self.examples)
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from error

    @property
    def is_written(self) -> bool:
        """Whether its answers are written, not chosen."""
        return are_written(self.examples)

    @property
    def where(self) -> str:
        """What error messages call the task: its file, or else its name."""
        return self.source or f"task '{self.name}'"

    @property
    def train(self) -> Sequence[Example]:
        """The examples to learn from."""
        return self._sides["train"]

    @property
    def test(self) -> Sequence[Example]:
        """The examples to be evaluated on."""
        return self._sides["test"]

    @cached_property
    def _sides(self) -> dict[str, Sequence[Example]]:
        if isinstance(self.examples, ExampleStore):
            return {side: self.examples.side(side) for side in SIDES}
        marks = [example.split for example in self.examples]
        sides = marks if marks[0] is not None else split_by_content(self.examples)
        pairs = list(zip(self.examples, sides, strict=True))
        return {one: tuple(example for example, side in pairs if side == one) for one in SIDES}


def are_written(examples: Sequence[Example]) -> bool:
    """Whether the answers are written, not chosen. Raises ``DataError`` where some are and some are not."""
    if isinstance(examples, ExampleStore):
        return examples.are_written
    number = sum(isinstance(example, WrittenExample) for example in examples)
    if 0 < number < len(examples):
        raise DataError("some answers are written and some are chosen; make two tasks of them")
    return number > 0


def first_unanswered(examples: Sequence[Example]) -> Example | None:
    """The first example without an answer, if there is one."""
    if isinstance(examples, ExampleStore) and examples.answered:
        return None
    return next((example for example in examples if example.answer is None), None)


def split_by_content(examples: Sequence[Example]) -> tuple[Split, ...]:
    """A side for each example: the 80 % of the distinct contents with the smallest hashes are for training.

    The order of the examples plays no part, copies of one example stay on one side, and both sides get something as
    soon as there are two distinct examples.
    """
    hashes = [content_hash(example) for example in examples]
    ranked = sorted(set(hashes))
    train = set(ranked[: num_train(len(ranked))])
    return tuple("train" if key in train else "test" for key in hashes)


def num_train(distinct: int) -> int:
    """How many of so many distinct examples are for training."""
    return min(max(round(TRAIN_SHARE * distinct), 1), max(distinct - 1, 1))


def content_hash(example: Example) -> str:
    """``content_digest`` in hexadecimal."""
    return content_digest(example).hex()


def content_digest(example: Example) -> bytes:
    """SHA-256 of the normalised input and options, whatever the options' order; id, answer and split play no part.

    Nor does a written answer.
    """
    content = [normalize(example.input), sorted(_normalize_option(option) for option in example.asked)]
    return hashlib.sha256(json.dumps(content).encode()).digest()


def normalize(text: str) -> str:
    """Text without what rarely matters: Unicode form, letter case, marks of punctuation, the amount of white space.

    A text of punctuation alone is kept, else "!" and "?" would be the same option.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = " ".join(_PUNCTUATION.sub(" ", folded).split())
    return bare or folded


# Most tasks have the same few options in every example.
_normalize_option = lru_cache(maxsize=4096)(normalize)
