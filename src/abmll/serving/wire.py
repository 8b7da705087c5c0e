"""What clients send, and how it is checked. What they get back is made where it is known."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from abmll.common.errors import DataError
from abmll.serving.limits import ServeConfig
from abmll.serving.task_store import Labelled

LABEL_CHARACTERS = 200
MOST = 2**31 - 1  # of a whole number, as databases have them
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Text = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """A JSON object without keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LabelledText(Body):
    """A text and its label."""

    text: Text
    label: Text


class NewTask(Body):
    """A task to be learned."""

    name: Text
    examples: list[LabelledText]
    how: Literal["head", "full"] = "head"
    label_order: list[Text] | None = None
    steps: int | None = Field(default=None, ge=0, le=10_000)


class AddedExamples(Body):
    """Examples to be added."""

    examples: list[LabelledText]


class Texts(Body):
    """Texts of examples."""

    texts: list[Text]


class Question(Body):
    """Texts to be answered."""

    texts: list[Text]
    version: int | None = Field(default=None, ge=1, le=MOST)


class Pool(Body):
    """Unlabelled texts to choose from."""

    texts: list[Text]
    number: int = Field(default=10, ge=1, le=MOST)


class Exported(Body):
    """What form a posterior is wanted in."""

    format: Literal["posterior", "peft", "vllm-ensemble"] = "posterior"


def check_name(name: str) -> str:
    """A task's name. Raises ``DataError`` for one that is none."""
    if not NAME.fullmatch(name):
        raise DataError("name: a task's name has 1 to 100 of the characters A-Z a-z 0-9 . _ -, the first none of . _ -")
    return name


def check_texts(texts: Sequence[str], limits: ServeConfig) -> None:
    """Raise ``DataError`` for too many texts, for none, for one that is too long or blank."""
    if not texts:
        raise DataError("texts: there are none; give at least one")
    if len(texts) > limits.max_texts:
        raise DataError(f"texts: there are {len(texts):,}; a request has at most {limits.max_texts:,}")
    for number, text in enumerate(texts):
        _check_text(text, f"texts[{number}]", limits)


def labelled(pairs: Sequence[tuple[str, str]], limits: ServeConfig) -> list[Labelled]:
    """Texts with their labels as examples. Where a text comes twice, its last label counts.

    Raises ``DataError`` for what can be no example, and for too many of them.
    """
    if not pairs:
        raise DataError("examples: there are none; give at least one")
    if len(pairs) > limits.max_examples:
        raise DataError(f"examples: there are {len(pairs):,}; a task has at most {limits.max_examples:,}")
    found: dict[str, str] = {}
    for number, (text, label) in enumerate(pairs):
        _check_text(text, f"examples[{number}].text", limits)
        found[text] = _checked_label(label, f"examples[{number}].label")
    return [Labelled(text, label) for text, label in found.items()]


def _check_text(text: str, where: str, limits: ServeConfig) -> None:
    if not text.strip():
        raise DataError(f"{where}: is blank")
    if len(text) > limits.max_text_characters:
        raise DataError(f"{where}: has {len(text):,} characters; at most {limits.max_text_characters:,} are read")
    _refuse_odd(text, where)


def _checked_label(label: str, where: str) -> str:
    label = label.strip()
    if not label:
        raise DataError(f"{where}: is blank")
    if len(label) > LABEL_CHARACTERS or "\n" in label or "\r" in label:
        raise DataError(f"{where}: must be one line of at most {LABEL_CHARACTERS} characters")
    _refuse_odd(label, where)
    return label


def _refuse_odd(text: str, where: str) -> None:
    """Raise ``DataError`` for characters that no database keeps and no model reads."""
    try:
        text.encode("utf-8")
        is_odd = "\0" in text
    except UnicodeEncodeError:
        is_odd = True
    if is_odd:
        raise DataError(f"{where}: has a character that is none (a zero byte, or half of a pair)")
