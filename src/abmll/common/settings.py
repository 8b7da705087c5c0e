"""Settings between their dataclasses and one flat mapping, the form of YAML files, flags and checkpoints."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from abmll.common.errors import ConfigError, nearest

Config = TypeVar("Config")


def flatten(*configs: Any) -> dict[str, Any]:
    """The fields of several dataclasses as one mapping of plain values (tuples become lists)."""
    flat: dict[str, Any] = {}
    for config in configs:
        for field in fields(config):
            value = getattr(config, field.name)
            flat[field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def pick(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """A ``kind`` made of those ``settings`` that are its fields (lists become tuples); the rest is left alone."""
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType] (a dataclass)
    chosen = {name: settings[name] for name in names if name in settings}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def refuse_unknown(kinds: tuple[type, ...], settings: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigError`` with the nearest name for a key that is a field of none of ``kinds``."""
    known = [field.name for kind in kinds for field in fields(kind)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{where}: unknown setting '{key}'.{nearest(str(key), known)}")
