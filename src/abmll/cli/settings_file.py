"""A configuration file: one flat YAML mapping from the names of settings to their values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from abmll.common.bounded_yaml import read_yaml_text, yaml_node
from abmll.common.errors import ConfigError, nearest
from abmll.common.settings import Kind

RECIPES = Path(__file__).parent.parent / "experiments" / "recipes"
INCLUDE = "include"  # the one key that is no setting: another file, whose values this one's go before
_NULL_TAG = "tag:yaml.org,2002:null"


def read_settings(path: Path, kinds: Mapping[str, Kind], including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values that a YAML file, or a recipe, gives to the settings of ``kinds``, dashes in names as underscores.

    ``include`` in it names a file beside it, or a recipe, before whose values its own go; ``including`` are the files
    that led here.
    The values are read from their text: the setting's kind decides what 1e-6, no or 007 means, not YAML's rules.
    Raises ``ConfigError`` with file and line for an unknown setting, one that is set twice, or a value of another kind.
    """
    path = _recipe(path) or path
    including = including or (path.resolve(),)
    root = _parse(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{root.start_mark.line + 1}: must be a mapping: 'name: value', one a line")
    values: dict[str, Any] = {}
    included: dict[str, Any] | None = None
    for key, node in root.value:
        where, name = f"{path}:{key.start_mark.line + 1}", str(key.value).replace("-", "_")
        if isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{where}: {name} must be a value or a list of values; settings are not nested")
        if name == INCLUDE and isinstance(node, yaml.ScalarNode):
            if included is not None:
                raise ConfigError(f"{where}: {name} is set a second time; keep one")
            other = path.parent / node.value
            other = other if other.exists() else _recipe(Path(node.value)) or other
            if other.resolve() in including:
                raise ConfigError(f"{where}: includes itself; leave it out")
            included = read_settings(other, kinds, (*including, other.resolve()))
            continue
        if name not in kinds:
            raise ConfigError(f"{where}: unknown setting '{name}'.{nearest(name, kinds)}")
        if name in values:
            raise ConfigError(f"{where}: {name} is set a second time; keep one")
        try:
            values[name] = _value(kinds[name], node)
        except ValueError as error:
            raise ConfigError(f"{where}: {name} {error}") from error
    return (included or {}) | values


def recipes() -> list[str]:
    """The names of the files of settings that come with the package; ``shared`` is what they include."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "shared")


def _recipe(name: Path) -> Path | None:
    """The file of a recipe, where there is no file of that name in the current folder."""
    return RECIPES / f"{name}.yaml" if str(name) in recipes() and not name.is_file() else None


def write_settings(values: Mapping[str, Any]) -> str:
    """YAML text of settings, in their order, that ``read_settings`` reads back; empty for no settings."""
    plain = {name: _plain(value) for name, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1_000_000) if plain else ""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(piece) for piece in value]
    return str(value) if isinstance(value, Path) else value


def _value(kind: Kind, node: yaml.Node) -> Any:
    """The value of a scalar or of a list of scalars; ``ValueError`` for one of another kind."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag != _NULL_TAG:
            return kind.read([node.value])
        if kind.optional:
            return None
        raise ValueError(f"is null; use {kind.noun}")
    if kind.many and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return kind.read([item.value for item in node.value], separator=None)
    raise ValueError(f"is a list{' of lists' * kind.many}; use {kind.noun}")


def _parse(path: Path) -> yaml.Node | None:
    if not path.exists():
        beside = [sibling.name for sibling in path.parent.glob("*") if sibling != path]
        hint = nearest(path.name, beside) or nearest(str(path), recipes())
        raise ConfigError(f"{path}: cannot be read (No such file or directory).{hint}")
    return yaml_node(read_yaml_text(path, ConfigError), str(path), ConfigError)
