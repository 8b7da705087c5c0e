"""Settings that refuse values which cannot be: a dataclass field carries its help and bounds, its class checks them."""

import math
from dataclasses import Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from abmll.common.errors import ConfigError, nearest

_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", NoneType: "none"}


def setting(default: Any, help: str, *, at_least: float | None = None, above: float | None = None) -> Any:
    """A dataclass field with its help text, shown by ``--help``, and the bounds of its values."""
    return field(default=default, metadata={"help": help, "at_least": at_least, "above": above})


@dataclass(frozen=True)
class Checked:
    """A group of settings, each made by ``setting``.

    Raises ``ConfigError`` naming the field whose value is of another type, out of bounds, or none of its choices.
    """

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            if not _fits(value, own.type, own):
                hint = nearest(str(value), get_args(own.type)) if get_origin(own.type) is Literal else ""
                raise ConfigError(f"{own.name} is {value!r}; use {_wanted(own.type, own)}" + f".{hint}" * bool(hint))


def _fits(value: Any, kind: Any, field: Field[Any]) -> bool:
    """Whether a value is of the type and within the field's bounds; a whole number is a float, a bool is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, choice, field) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and value != () and all(_fits(one, get_args(kind)[0], field) for one in value)
    if kind not in (int, float):
        return isinstance(value, kind) and value != ""
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not math.isfinite(value):
        return False
    at_least, above = field.metadata["at_least"], field.metadata["above"]
    return (at_least is None or value >= at_least) and (above is None or value > above)


def _wanted(kind: Any, field: Field[Any]) -> str:
    """What the field takes, in words such as "a whole number of 1 or more"."""
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        return f"{', '.join(others)} or {last}"
    if isinstance(kind, UnionType):
        return " or ".join(_wanted(choice, field) for choice in reversed(get_args(kind)))
    if get_origin(kind) is tuple:
        own = get_args(kind)[0]
        return "a tuple of names" if own is str else f"a tuple, each {_wanted(own, field)}"
    if kind not in (int, float):
        return _NOUNS[kind]
    at_least, above = field.metadata["at_least"], field.metadata["above"]
    bounds = f" of {at_least} or more" * (at_least is not None) + f" above {above}" * (above is not None)
    return _NOUNS[kind] + bounds
