"""The YAML file of a suite: found by name or path, parsed, and checked key by key, naming the nearest known word."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError, nearest

SIDES = ("train", "evaluation")
LISTS = (*SIDES, "validation", "known_leaks")
CAPS = ("adapt_examples", "test_examples")
KEYS = ("name", "description", "source", *LISTS, "hub", "prompt", *CAPS)
SOURCES = ("folder", "bigbench")


@dataclass(frozen=True)
class SuiteFile:
    """A suite's YAML file as it stands, checked, with no task looked up; the keys are described in ``suite.py``."""

    name: str
    where: str  # the file, for messages
    folder: Path | None  # in which it lies; None for a suite of the package
    train: tuple[str, ...]
    evaluation: tuple[str, ...]
    validation: tuple[str, ...] = ()
    known_leaks: tuple[str, ...] = ()
    description: str = ""
    source: str = "folder"
    hub: dict[str, str] = field(default_factory=dict)
    prompt: dict[str, Any] = field(default_factory=dict)
    adapt_examples: int | None = None
    test_examples: int | None = None


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    folder = files("abmll.tasks") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_suite(name_or_path: str | Path) -> SuiteFile:
    """The file of a shipped suite by its name (also as ``suite:name``), or a YAML file by its path.

    Raises ``DataError`` where there is none, ``ConfigError`` for unknown or malformed keys.
    """
    text, where, folder = _find(str(name_or_path).removeprefix("suite:"))
    values = _parse(text, where)
    _check(values, where)
    lists = {key: tuple(values.get(key) or ()) for key in LISTS}
    return SuiteFile(
        name=str(values["name"]),
        where=where,
        folder=folder,
        description=" ".join(str(values.get("description") or "").split()),
        source=values.get("source", "folder"),
        hub=values.get("hub") or {},
        prompt=values.get("prompt") or {},
        adapt_examples=values.get("adapt_examples"),
        test_examples=values.get("test_examples"),
        **lists,
    )


def _find(name: str) -> tuple[str, str, Path | None]:
    """(text, place for messages, folder of the file) of a YAML file, or of a shipped suite, which has no folder."""
    if name in shipped_suites():
        return (files("abmll.tasks") / "suites" / f"{name}.yaml").read_text(encoding="utf-8"), f"suite '{name}'", None
    path = Path(name)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8"), str(path), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); it must be a YAML file in UTF-8") from error
    known = ", ".join(shipped_suites())
    beside = [file.name for file in path.parent.glob("*.y*ml")]
    hint = nearest(name, shipped_suites()) or nearest(path.name, beside)
    raise DataError(f"no suite '{name}': give a YAML file or one of {known}.{hint}")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: malformed YAML ({getattr(error, 'problem', None) or 'not text'})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected keys such as name, train and evaluation")
    return values


def _check(values: dict[str, Any], where: str) -> None:
    """Raise ``ConfigError`` unless every key is known and of the right type."""
    _refuse_unknown(values, KEYS, f"{where}: unknown key")
    for key in ("name", *SIDES):
        if not values.get(key):
            raise ConfigError(f"{where}: '{key}' is missing; add it")
    for key in LISTS:
        _check_names(values.get(key) or [], key, where)
    _check_within(values, "validation", "train", where)
    _check_within(values, "known_leaks", "evaluation", where)
    if both := [name for name in values.get("validation") or () if name in values["evaluation"]]:
        raise ConfigError(f"{where}: '{both[0]}' is a validation and an evaluation task; leave it out of one list")
    hub = values.get("hub") or {}
    if not isinstance(hub, dict) or not all(isinstance(text, str) for pair in hub.items() for text in pair):
        raise ConfigError(f"{where}: 'hub' must be task names and the names of their datasets, such as glue-cola: me/x")
    _check_prompt(values.get("prompt") or {}, where)
    for key in CAPS:
        cap = values.get(key)
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
            raise ConfigError(f"{where}: '{key}' is {cap!r}; it must be a whole number of at least 1")
    if values.get("source", "folder") not in SOURCES:
        raise ConfigError(f"{where}: 'source' is {values['source']!r}; use one of {', '.join(SOURCES)}")


def _check_names(names: Any, key: str, where: str) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: '{key}' must be a list of task names")
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: '{key}' names a task twice; remove one")


def _check_within(values: dict[str, Any], key: str, side: str, where: str) -> None:
    for name in values.get(key) or ():
        if name not in values[side]:
            hint = nearest(name, values[side])
            raise ConfigError(f"{where}: '{key}' names '{name}', which is not under '{side}'; add it there.{hint}")


def _check_prompt(prompt: Any, where: str) -> None:
    if not isinstance(prompt, dict):
        raise ConfigError(f"{where}: 'prompt' must be keys and values, such as answer: text")
    _refuse_unknown(prompt, [field.name for field in fields(PromptConfig)], f"{where}: unknown key of 'prompt'")
    try:
        PromptConfig(**prompt)
    except ConfigError as error:
        raise ConfigError(f"{where}: prompt: {error}") from error


def _refuse_unknown(given: Iterable[Any], known: Sequence[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} '{key}'.{nearest(str(key), known)}")
