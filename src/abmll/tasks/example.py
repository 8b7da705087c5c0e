"""What an example is: one question with the options among which its answer is, and what makes two of them the same."""

import hashlib
import json
import re
import string
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from abmll.common.errors import DataError

Split = Literal["train", "test"]
SIDES = get_args(Split)
MAX_OPTIONS = len(string.ascii_uppercase)

# Only the marks of prose: without "+", "-", "(" or "<" different sums and programs would become one.
_PUNCTUATION = re.compile("[.,;:!?\"'‘’“”„…]+")  # noqa: RUF001 (these marks are meant)


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
        if self.split is not None and self.split not in SIDES:
            raise DataError(f"split is {self.split!r}; use 'train' or 'test'")


def _check_options(options: tuple[str, ...]) -> None:
    if len(options) < 2:
        raise DataError(f"{len(options)} option{'s' * (not options)}; a question needs at least 2")
    if len(options) > MAX_OPTIONS:
        raise DataError(f"{len(options)} options; at most {MAX_OPTIONS} (A to Z) are possible")
    stripped = [option.strip() for option in options]
    if all(stripped) and len(set(stripped)) == len(stripped):
        return
    for index, option in enumerate(stripped):
        if not option:
            raise DataError(f"option {index} is empty; give every option a text")
        if option in stripped[:index]:
            twin = stripped.index(option)
            raise DataError(f"options {twin} and {index} are both {option[:60]!r}; make them distinct")


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
