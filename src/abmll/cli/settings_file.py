"""A configuration file: one flat YAML mapping from the names of settings to their values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from abmll.common.errors import ConfigError, nearest

_NULL_TAG = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Entry:
    """A value as text (None: null), and where it stands ("run.yaml:3") for error messages."""

    value: str | list[str] | None
    where: str


def read_settings(path: Path) -> dict[str, Entry]:
    """The settings of a YAML file by name, dashes read as underscores; ConfigError names file and line.

    The values stay text: the setting's own type decides what 1e-6, no or 007 means, not YAML's rules.
    """
    root = _parse(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{root.start_mark.line + 1}: must be a mapping: 'name: value', one a line")
    entries: dict[str, Entry] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        name = str(key.value).replace("-", "_")
        if name in entries:
            raise ConfigError(f"{where}: {name}: is set a second time (first at {entries[name].where}); keep one")
        entries[name] = Entry(_plain(value, f"{where}: {name}"), where)
    return entries


def write_settings(values: dict[str, Any]) -> str:
    """YAML text of plain values, in their order; empty for no values."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1_000_000) if values else ""


def _parse(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        siblings = [sibling.name for sibling in path.parent.glob("*")]
        raise ConfigError(f"{path}: no such configuration file.{nearest(path.name, siblings)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # A control character, which has no line.
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error


def _plain(node: yaml.Node, where: str) -> str | list[str] | None:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL_TAG else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    raise ConfigError(f"{where}: must be a value or a list of values; settings are not nested")
