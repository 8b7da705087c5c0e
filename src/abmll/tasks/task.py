"""What a task is: multiple-choice examples under one name, with a fixed split into training and test examples."""

import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

from abmll.errors import DataError

Split = Literal["train", "test"]
MAX_OPTIONS = len(string.ascii_uppercase)
TRAIN_SHARE = 0.8

# Only the marks of prose: without "+", "-", "(" or "<" different sums and programs would become one.
_PUNCTUATION = re.compile("[.,;:!?\"'‘’“”„…]+")  # noqa: RUF001


@dataclass(frozen=True)
class Example:
    """One question with 2 to 26 options, of which at most one is known to be right.

    Args:
        id: unique within its task.
        input: the question; may be empty where the options say it all.
        options: distinct, not blank (compared without surrounding white space).
        answer: index of the right option, or None where it is not known.
        split: the side the data's author put it on, if any.

    Raises:
        DataError: whichever of these does not hold; the reader of a file adds file and line.
    """

    id: str
    input: str
    options: tuple[str, ...]
    answer: int | None
    split: Split | None = None

    def __post_init__(self) -> None:
        _check_options(self.options)
        if self.answer is not None and not 0 <= self.answer < len(self.options):
            raise DataError(
                f"answer {self.answer} is out of range: {len(self.options)} options count from 0 to "
                f"{len(self.options) - 1}"
            )
        if self.split is not None and self.split not in get_args(Split):
            raise DataError(f"split is {self.split!r}; use 'train' or 'test'")


def _check_options(options: tuple[str, ...]) -> None:
    if len(options) < 2:
        raise DataError(f"{len(options)} option{'s' * (not options)}; a question needs at least 2")
    if len(options) > MAX_OPTIONS:
        raise DataError(f"{len(options)} options; at most {MAX_OPTIONS} (A to Z) are possible")
    stripped = [option.strip() for option in options]
    for index, option in enumerate(stripped):
        if not option:
            raise DataError(f"option {index} is empty; give every option a text")
        if option in stripped[:index]:
            twin = stripped.index(option)
            raise DataError(f"options {twin} and {index} are both {option[:60]!r}; make them distinct")


@dataclass(frozen=True)
class Task:
    """A named collection of examples.

    Args:
        name: shown to the model in front of every input.
        examples: in the order of their file; ids are distinct.
        family: tasks of one family are variants of each other; a suite keeps a family on one side.
        source: where it was read, for error messages.

    Raises:
        DataError: no examples, duplicate ids, or a ``split`` on some examples and not on others.
    """

    name: str
    examples: tuple[Example, ...]
    family: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        where = self.source or f"task '{self.name}'"
        if not self.examples:
            raise DataError(f"{where}: no examples")
        ids: set[str] = set()
        for example in self.examples:
            if example.id in ids:
                raise DataError(f"{where}: id {example.id!r} occurs twice; make ids unique or leave them out")
            ids.add(example.id)
        marked = sum(example.split is not None for example in self.examples)
        if 0 < marked < len(self.examples):
            raise DataError(
                f"{where}: {marked} of {len(self.examples)} examples carry a 'split'; give it to all or to none"
            )

    @property
    def train(self) -> tuple[Example, ...]:
        """The examples to learn from."""
        return tuple(e for e, side in zip(self.examples, self._sides, strict=True) if side == "train")

    @property
    def test(self) -> tuple[Example, ...]:
        """The examples to be judged by."""
        return tuple(e for e, side in zip(self.examples, self._sides, strict=True) if side == "test")

    @cached_property
    def _sides(self) -> tuple[Split, ...]:
        own: list[Split] = [e.split for e in self.examples if e.split is not None]
        return tuple(own) or split_by_content(self.examples)


def normalize(text: str) -> str:
    """Text without what rarely matters: Unicode form, letter case, marks of punctuation, the amount of white space.

    A text of punctuation alone is kept, else "!" and "?" would be the same option.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = " ".join(_PUNCTUATION.sub(" ", folded).split())
    return bare or folded


def content_hash(example: Example) -> str:
    """SHA-256 of the normalised input and options, whatever the options' order; id, answer and split play no part."""
    content = [normalize(example.input), sorted(_normalize_option(option) for option in example.options)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# Most tasks have the same few options in every example.
_normalize_option = lru_cache(maxsize=4096)(normalize)


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
