"""Settings: what each one may be, the dataclasses that hold them, and their form as one flat mapping.

A dataclass field says in its annotation and in ``setting`` what it may be. ``Kind`` is the one reading of that: the
dataclass checks its values by it, and flags and YAML files are read by it, so that every refusal has the same words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from abmll.common.errors import ConfigError, nearest

Config = TypeVar("Config")
SHOWN = 200  # characters of a value in an error
LARGEST = 2**63  # beyond it no whole number is a seed or a size
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-30, 1e15  # a float32 has little room beyond them
_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", Path: "a path", str: "a text"}


@dataclass(frozen=True)
class Kind:
    """What a setting may be: its ``base`` (str, int, float, bool or Path), and what annotation and bounds add to that.

    ``choices`` are the values of a Literal (its base is str), ``many`` stands for ``tuple[base, ...]``, ``optional``
    for ``base | None``. The bounds are those of a number, or of every number of a tuple.
    """

    base: type
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False
    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf

    @property
    def noun(self) -> str:
        """What a value has to be, such as "none or a whole number of 1 or more"."""
        if self.optional:
            return "none or " + replace(self, optional=False).noun
        if self.many:
            return "a tuple of names" if self == Kind(str, many=True) else f"a tuple, each {self._one.noun}"
        if self.choices:
            *others, last = map(repr, self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        bounds = {" of {} or more": self.at_least, " above {}": self.above, " and below {}": self.below}
        return _NOUNS[self.base] + "".join(text.format(bound) for text, bound in bounds.items() if math.isfinite(bound))

    @property
    def _one(self) -> "Kind":
        """The kind of one value of several."""
        return replace(self, many=False, optional=False)

    def accepts(self, value: Any) -> bool:
        """Whether a Python value is of this kind; a whole number is a float, a bool is no number, no text is empty."""
        if value is None:
            return self.optional
        if self.many:
            return isinstance(value, tuple) and value != () and all(map(self._one.accepts, value))
        if self.choices:
            return value in self.choices
        if self.base not in (int, float):
            return isinstance(value, self.base) and value != ""
        if isinstance(value, bool) or not isinstance(value, (int, self.base)) or not math.isfinite(value):
            return False
        if (isinstance(value, int) and _is_too_large(value)) or (self.base is float and _is_out_of_reach(value)):
            return False
        return self.at_least <= value < self.below and value > self.above

    def refusal(self, value: Any) -> str:
        """The end of an error's line, after the setting's name."""
        hint = nearest(str(value)[:SHOWN], self.choices)
        shown = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}..."
        limit = " (below 2^63)" * (self.base is int and _is_too_large(value))
        limit += f" (in size from {SMALLEST_FLOAT:g} to {LARGEST_FLOAT:g})" * (
            self.base is float and _is_out_of_reach(value)
        )
        return f"is {shown}; use {self.noun}{limit}" + f".{hint}" * bool(hint)

    def read(self, texts: Sequence[str], separator: str | None = ",") -> Any:
        """The value that one or more texts stand for: a flag given once or repeatedly, or positional arguments.

        A ``many`` kind takes them all and splits each one at ``separator`` (None: as they are, for file names); any
        other kind takes the last one. "none" gives None where the kind is optional. Raises ``ValueError`` with the
        ``refusal`` of a text that is not of this kind.
        """
        if self.optional and len(texts) == 1 and texts[0].lower() == "none":
            return None
        if self.many:
            pieces = [piece.strip() for text in texts for piece in text.split(separator)] if separator else texts
            return tuple(self._one.read([piece]) for piece in pieces)
        value = self._parse(texts[-1])
        if value is None or not self.accepts(value):
            raise ValueError(self.refusal(texts[-1]))
        return value

    def _parse(self, text: str) -> Any:
        """The value of the base type, or None where the text is none."""
        if self.base is bool:
            return {"true": True, "false": False}.get(text.lower())
        if self.base is Path:
            return _path(text)
        try:
            return self.base(text) + 0 if self.base in (int, float) else self.base(text)  # -0.0 is 0.0
        except ValueError:
            return None


def _path(text: str) -> Path | None:
    try:
        return Path(text).expanduser() if text else None  # Path("") is the current folder: nobody's intention.
    except RuntimeError:  # ~name of somebody who is not known here
        return None


def _is_too_large(value: Any) -> bool:
    try:
        return abs(int(value)) >= LARGEST
    except (TypeError, ValueError, OverflowError):  # no whole number at all
        return False


def _is_out_of_reach(value: Any) -> bool:
    """Whether a number has a size that no setting of a fraction has."""
    try:
        size = abs(float(value))
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, int)
    return LARGEST_FLOAT < size < math.inf or 0 < size < SMALLEST_FLOAT


def kind_of(annotation: Any, **bounds: Any) -> Kind:
    """The kind that an annotation stands for; ``TypeError`` for one that no setting can have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return replace(kind_of(arguments[0], **bounds), optional=True)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return replace(kind_of(arguments[0], **bounds), many=True)
    if origin is Literal and all(isinstance(choice, str) for choice in arguments):
        return Kind(str, choices=arguments)
    if annotation in _NOUNS:
        return Kind(annotation, **bounds)
    raise TypeError(f"no setting can have the type {annotation}")


def setting(default: Any, help: str, **bounds: float) -> Any:
    """A dataclass field with its help, shown by ``--help``, and its bounds: ``at_least``, ``above``, ``below``."""
    return field(default=default, metadata={"help": help, "bounds": bounds})


def again(config: type, name: str, help: str | None = None) -> Any:
    """A setting of another dataclass once more: its default and bounds and, unless another is given, its help."""
    [own] = [own for own in fields(config) if own.name == name]
    return setting(own.default, help or own.metadata["help"], **own.metadata["bounds"])


@cache
def kinds_of(config: type) -> Mapping[str, Kind]:
    """The kind of every field of a dataclass of settings, by name."""
    hints = get_type_hints(config)
    return {own.name: kind_of(hints[own.name], **own.metadata["bounds"]) for own in fields(config)}


@dataclass(frozen=True)
class Checked:
    """A group of settings, each made by ``setting``.

    Raises ``ConfigError`` naming the field whose value is of another type, out of bounds, or none of its choices.
    """

    def __post_init__(self) -> None:
        for name, kind in kinds_of(type(self)).items():
            value = getattr(self, name)
            if not kind.accepts(value):
                raise ConfigError(f"{name} {kind.refusal(value)}")


def flatten(*configs: Any) -> dict[str, Any]:
    """The fields of several dataclasses as one mapping of plain values (tuples become lists)."""
    flat = {own.name: getattr(config, own.name) for config in configs for own in fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}


def pick(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """A ``kind`` made of those ``settings`` that are its fields (lists become tuples); the rest is left alone."""
    chosen = {name: settings[name] for name in kinds_of(kind) if name in settings}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def refuse_unknown(kinds: tuple[type, ...], settings: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigError`` with the nearest name for a key that is a field of none of ``kinds``."""
    known = [name for kind in kinds for name in kinds_of(kind)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{where}: unknown setting '{key}'.{nearest(str(key), known)}")
