"""The YAML file of a suite: found by name or path, parsed, and checked key by key, naming the nearest known word.

name: my-suite
description: one sentence
source: bigbench             # or folder (the default): files <task>.jsonl, .jsonl.gz, .csv, ... beside the YAML file
train: [task, ...]
validation: [task, ...]      # optional: those of the training tasks on which settings are chosen
evaluation: [task, ...]
known_leaks: [task, ...]     # optional: evaluation tasks that overlap with the training on purpose; tables name them
hub: {task: dataset}         # optional: the Hugging Face dataset of a task that lies in no folder
prompt: {answer: text}       # optional: fields of PromptConfig
adapt_examples: 20           # optional: training examples of an evaluation task that adaptation may use
test_examples: 100           # optional: test examples of an evaluation task that are predicted
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from abmll.common.bounded_yaml import read_yaml_text, yaml_value
from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError, nearest

SOURCES = ("folder", "bigbench")
CAPS = ("adapt_examples", "test_examples")


@dataclass(frozen=True)
class SuiteFile:
    """A suite's YAML file as it stands, checked, with no task looked up.

    ``where`` is the file, for messages, and ``folder`` that in which it lies (None for a suite of the package).
    """

    where: str
    folder: Path | None
    name: str
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

    @property
    def caps(self) -> dict[str, int]:
        """``adapt_examples`` and ``test_examples`` where the suite sets them."""
        return {key: getattr(self, key) for key in CAPS if getattr(self, key) is not None}


KEYS = [key.name for key in fields(SuiteFile) if key.name not in ("where", "folder")]
LISTS = ("train", "evaluation", "validation", "known_leaks")


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    folder = files("abmll.tasks") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_suite(name_or_path: str | Path) -> SuiteFile:
    """The file of a shipped suite by its name (also as ``suite:name``), or a YAML file by its path.

    Raises ``DataError`` where there is none, ``ConfigError`` for unknown or malformed keys.
    """
    text, where, folder = _find(str(name_or_path).removeprefix("suite:"))
    values = yaml_value(text, where, ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected keys such as name, train and evaluation")
    values = {key: value for key, value in values.items() if value is not None}
    try:
        _check(values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    values["name"], values["description"] = str(values["name"]), " ".join(str(values.get("description", "")).split())
    values.update({key: tuple(values.get(key, ())) for key in LISTS})
    return SuiteFile(where, folder, **values)


def _find(name: str) -> tuple[str, str, Path | None]:
    """(text, place for messages, folder of the file) of a YAML file, or of a shipped suite, which has no folder."""
    if name in shipped_suites():
        return (files("abmll.tasks") / "suites" / f"{name}.yaml").read_text(encoding="utf-8"), f"suite '{name}'", None
    path = Path(name)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return read_yaml_text(path, DataError), str(path), path.parent
    beside = [file.name for file in path.parent.glob("*.y*ml")]
    hint = nearest(name, shipped_suites()) or nearest(path.name, beside)
    raise DataError(f"no suite '{name}': give a YAML file or one of {', '.join(shipped_suites())}.{hint}")


def _check(values: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` unless every key is known and of the right type."""
    _refuse_unknown(values, KEYS, "unknown key")
    for key in ("name", "train", "evaluation"):
        if not values.get(key):
            raise ConfigError(f"'{key}' is missing; add it")
    for key in LISTS:
        names = values.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"'{key}' must be a list of task names")
        if len(set(names)) < len(names):
            raise ConfigError(f"'{key}' names a task twice; remove one")
    for key, side in (("validation", "train"), ("known_leaks", "evaluation")):
        for name in values.get(key, ()):
            if name not in values[side]:
                hint = nearest(name, values[side])
                raise ConfigError(f"'{key}' names '{name}', which is not under '{side}'; add it there.{hint}")
    if both := [name for name in values.get("validation", ()) if name in values["evaluation"]]:
        raise ConfigError(f"'{both[0]}' is a validation and an evaluation task; leave it out of one list")
    hub, prompt = values.get("hub", {}), values.get("prompt", {})
    if not isinstance(hub, dict) or not all(isinstance(text, str) for pair in hub.items() for text in pair):
        raise ConfigError("'hub' must be task names and the names of their datasets, such as glue-cola: me/x")
    if not isinstance(prompt, dict):
        raise ConfigError("'prompt' must be keys and values, such as answer: text")
    _refuse_unknown(prompt, [field.name for field in fields(PromptConfig)], "unknown key of 'prompt'")
    try:
        PromptConfig(**prompt)
    except ConfigError as error:
        raise ConfigError(f"prompt: {error}") from error
    for key in CAPS:
        cap = values.get(key, 1)
        if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
            raise ConfigError(f"'{key}' is {cap!r}; it must be a whole number of at least 1")
    if values.get("source", "folder") not in SOURCES:
        raise ConfigError(f"'source' is {values['source']!r}; use one of {', '.join(SOURCES)}")


def _refuse_unknown(given: Iterable[Any], known: Sequence[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} '{key}'.{nearest(str(key), known)}")
