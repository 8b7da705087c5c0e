"""A suite: which tasks to learn from, which unseen tasks to be judged by, and the prompt, named in a YAML file.

name: my-suite
description: one sentence
source: bigbench             # or folder (the default): files <task>.jsonl, .csv, .parquet, ... beside the YAML file
train: [task, ...]
evaluation: [task, ...]
prompt: {answer: text}       # optional: fields of PromptConfig
adapt_examples: 20           # optional: training examples of an evaluation task that adaptation may use
test_examples: 100           # optional: test examples of an evaluation task that are predicted
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from abmll.config import PromptConfig
from abmll.errors import ConfigError, DataError, nearest
from abmll.tasks.bigbench import bigbench_dir
from abmll.tasks.read import load_task
from abmll.tasks.rows import SUFFIXES, stem_of, suffix_of
from abmll.tasks.task import Task

KEYS = ("name", "description", "source", "train", "evaluation", "prompt", "adapt_examples", "test_examples")
SOURCES = ("folder", "bigbench")


@dataclass(frozen=True)
class Suite:
    """Tasks to learn from and unseen tasks to be judged by.

    ``prompt`` holds settings of ``PromptConfig``. The two caps, where not None, say how many training and test examples
    of an evaluation task are used.
    """

    name: str
    description: str
    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    prompt: dict[str, Any] = field(default_factory=dict)
    adapt_examples: int | None = None
    test_examples: int | None = None


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    folder = files("abmll") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name_or_path: str | Path, data_dir: Path | str | None = None) -> Suite:
    """The suite with its tasks loaded.

    Args:
        name_or_path: a shipped suite's name, or a YAML file.
        data_dir: folder of the tasks, searched with its subfolder ``tasks``. By default the suite's own source; where
            that is a folder, ``$ABMLL_DATA`` goes before the suite's.

    Raises:
        ConfigError: unknown or malformed keys of the YAML.
        DataError: no such suite, tasks that cannot be found (with the nearest name) or read, tasks not yet fetched.
    """
    text, where, beside = _find_suite(str(name_or_path))
    values = _checked(_parse(text, where), where)
    if data_dir is None and values.get("source") != "bigbench":
        data_dir = os.environ.get("ABMLL_DATA")
    folders = _task_folders(values, beside, data_dir)
    available = {stem_of(file): file for folder in folders for file in _task_files(folder)}
    train, evaluation = (_load(values[side], available, where, side) for side in ("train", "evaluation"))
    return Suite(
        name=str(values["name"]),
        description=str(values.get("description") or "").strip(),
        train=train,
        evaluation=evaluation,
        prompt=values.get("prompt") or {},
        adapt_examples=values.get("adapt_examples"),
        test_examples=values.get("test_examples"),
    )


def prompt_of_suite(name_or_path: str | Path) -> dict[str, Any]:
    """The suite's prompt settings (fields of ``PromptConfig``), without its tasks. Raises as ``load_suite``."""
    text, where, _ = _find_suite(str(name_or_path))
    return _checked(_parse(text, where), where).get("prompt") or {}


def caps_of_suite(name_or_path: str | Path) -> dict[str, int]:
    """``adapt_examples`` and ``test_examples`` where the suite sets them. Raises as ``load_suite``."""
    text, where, _ = _find_suite(str(name_or_path))
    values = _checked(_parse(text, where), where)
    return {key: values[key] for key in ("adapt_examples", "test_examples") if values.get(key) is not None}


def _find_suite(name: str) -> tuple[str, str, Path | None]:
    """(text, place for messages, folder of the file) of a YAML file, or of a shipped suite, which has no folder."""
    if name in shipped_suites():
        return (files("abmll") / "suites" / f"{name}.yaml").read_text(encoding="utf-8"), f"suite '{name}'", None
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


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values, if every key is known and of the right type."""
    _refuse_unknown(values, KEYS, f"{where}: unknown key")
    for key in ("name", "train", "evaluation"):
        if not values.get(key):
            raise ConfigError(f"{where}: '{key}' is missing; add it")
    for side in ("train", "evaluation"):
        names = values[side]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where}: '{side}' must be a list of task names")
        if len(set(names)) < len(names):
            raise ConfigError(f"{where}: '{side}' names a task twice; remove one")
    prompt = values.get("prompt") or {}
    if not isinstance(prompt, dict):
        raise ConfigError(f"{where}: 'prompt' must be keys and values, such as answer: text")
    _refuse_unknown(prompt, [field.name for field in fields(PromptConfig)], f"{where}: unknown key of 'prompt'")
    try:
        PromptConfig(**prompt)
    except ConfigError as error:
        raise ConfigError(f"{where}: prompt: {error}") from error
    for key in ("adapt_examples", "test_examples"):
        cap = values.get(key)
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
            raise ConfigError(f"{where}: '{key}' is {cap!r}; it must be a whole number of at least 1")
    if values.get("source", "folder") not in SOURCES:
        raise ConfigError(f"{where}: 'source' is {values['source']!r}; use one of {', '.join(SOURCES)}")
    return values


def _refuse_unknown(given: Iterable[Any], known: Sequence[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} '{key}'.{nearest(str(key), known)}")


def _task_folders(values: dict[str, Any], beside: Path | None, data_dir: Path | str | None) -> list[Path]:
    """Where to look for the tasks; a later folder goes before an earlier one."""
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise DataError(f"{data_dir}: no such folder (the tasks of suite '{values['name']}' are looked for there)")
        return [Path(data_dir), Path(data_dir) / "tasks"]
    if values.get("source") == "bigbench":
        if not (bigbench_dir() / "manifest.json").is_file():
            raise DataError(f"suite '{values['name']}' needs the BIG-bench tasks; run: abmll tasks fetch bigbench")
        return [bigbench_dir()]
    if beside is None:
        raise DataError(f"suite '{values['name']}' needs a folder with its tasks; set ABMLL_DATA to it")
    return [beside, beside / "tasks"]


def _task_files(folder: Path) -> list[Path]:
    # Sorted by preference: where a task lies there in several formats, the first of SUFFIXES goes last and wins.
    found = [file for file in folder.iterdir() if suffix_of(file)] if folder.is_dir() else []
    return sorted(found, key=lambda file: (-SUFFIXES.index(suffix_of(file)), file.name))


def _load(names: list[str], available: dict[str, Path], where: str, side: str) -> tuple[Task, ...]:
    for name in names:
        if name not in available:
            raise DataError(f"{where}: no {side} task '{name}'.{nearest(name, available)}")
    return tuple(load_task(available[name], name=name) for name in names)
