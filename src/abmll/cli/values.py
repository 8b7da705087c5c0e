"""What a setting may be, and how it is read from text: from a flag, or from a scalar of a YAML file.

Both sources are text of the same form, so both end in the same value, and every refusal reads the same: "must be a
whole number, not 'many'". The callers put in front of it where the text came from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from abmll.common.errors import nearest

_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", Path: "a path", str: "text"}
_METAVARS = {int: "INT", float: "FLOAT", bool: "BOOL", Path: "PATH", str: "TEXT"}


@dataclass(frozen=True)
class Kind:
    """The type of a setting: `base` (str, int, float, bool or Path), and what its annotation adds to that.

    `choices` are the values of a Literal (its base is str), `many` stands for ``tuple[base, ...]``, `optional` for
    ``base | None``.
    """

    base: type
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False

    @property
    def noun(self) -> str:
        """What a value has to be, in the words of an error message."""
        one = "one of " + ", ".join(map(repr, self.choices)) if self.choices else _NOUNS[self.base]
        return one + " or several" * self.many + " or none" * self.optional

    @property
    def metavar(self) -> str:
        """The value's place in a line of ``--help``."""
        one = "{" + ",".join(self.choices) + "}" if self.choices else _METAVARS[self.base]
        return one + ",..." * self.many


def kind_of(annotation: Any) -> Kind:
    """The kind that an annotation stands for; TypeError for one that no flag can carry."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return replace(kind_of(arguments[0]), optional=True)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return replace(kind_of(arguments[0]), many=True)
    if origin is Literal and all(isinstance(choice, str) for choice in arguments):
        return Kind(str, choices=arguments)
    if annotation in _NOUNS:
        return Kind(annotation)
    raise TypeError(f"no flag can carry a value of type {annotation}")


def from_texts(kind: Kind, texts: Sequence[str], separator: str | None = ",") -> Any:
    """The value that one or more texts stand for: a flag given once or repeatedly, or positional arguments.

    A `many` kind takes them all and splits each one at `separator` (None: as they are, for file names); any other kind
    takes the last one. "none" gives None where the kind allows it. ValueError says what the value must be.
    """
    if kind.optional and len(texts) == 1 and texts[0].lower() == "none":
        return None
    if not kind.many:
        return _scalar(kind, texts[-1])
    pieces = [piece.strip() for text in texts for piece in text.split(separator)] if separator else texts
    return tuple(_scalar(kind, piece) for piece in pieces)


def from_yaml(kind: Kind, value: str | list[str] | None) -> Any:
    """The value of a YAML scalar's text, of a list of them, or of null; ValueError says what it must be."""
    if value is None and kind.optional:
        return None
    if value is None or (isinstance(value, list) and not kind.many):
        raise ValueError(f"must be {kind.noun}, not {'null' if value is None else 'a list'}")
    return from_texts(kind, [value]) if isinstance(value, str) else from_texts(kind, value, separator=None)


def to_yaml(value: Any) -> Any:
    """The plain value that YAML writes and `from_yaml` reads back."""
    if isinstance(value, tuple):
        return [to_yaml(piece) for piece in value]
    return str(value) if isinstance(value, Path) else value


def _scalar(kind: Kind, text: str) -> Any:
    value = _parse(kind, text)
    if value is None:
        hint = nearest(text, kind.choices)
        raise ValueError(f"must be {kind.noun}, not {text!r}" + f".{hint}" * bool(hint))
    return value


def _parse(kind: Kind, text: str) -> Any:
    """The value, or None where the text is not one of this kind."""
    if kind.choices:
        return text if text in kind.choices else None
    if kind.base is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind.base is str:
        return text
    if kind.base is Path:
        return Path(text).expanduser() if text else None  # Path("") is the current folder: nobody's intention.
    try:
        number = kind.base(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
