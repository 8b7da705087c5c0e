"""The executor that a command asks for, and its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abmll.common.bounded_yaml import read_yaml_text, yaml_value
from abmll.common.errors import ConfigError
from abmll.common.settings import pick, refuse_unknown
from abmll.experiments.executors.local_processes import LocalProcesses
from abmll.experiments.executors.ray_jobs import RayJobs, RayOptions
from abmll.experiments.executors.submitit_jobs import SubmititJobs
from abmll.experiments.executors.work import Executor


def choose(name: str, options: Sequence[str], jobs: int | None, folder: Path) -> Executor:
    """The executor of that name, checked.

    Args:
        options: NAME=VALUE each, or a YAML file of them: submitit's parameters and ``cluster``, or ``RayOptions``.
        jobs: so many units at the same time; None: as many as there is room for, one on this computer.
        folder: where a command works; the files of its jobs lie in it.

    Raises ``ConfigError`` for an option that there is not, or a library or a Slurm that is not there.
    """
    given = read_options(options)
    if name == "ray":
        refuse_unknown((RayOptions,), given, "executor_options")
        return RayJobs(pick(RayOptions, given), jobs)
    if name == "submitit":
        return SubmititJobs(folder / "jobs", str(given.pop("cluster", "slurm")), given, jobs)
    if given:
        raise ConfigError("executor_options: they are for --executor submitit or ray; leave them out, or name one")
    return LocalProcesses(jobs or 1)


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """The options in a file, or in the texts themselves; their values are YAML."""
    if len(texts) == 1 and "=" not in texts[0]:
        path = Path(texts[0]).expanduser()
        found = yaml_value(read_yaml_text(path, ConfigError), str(path), ConfigError)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ConfigError(f"{path}: is no mapping of option names to values")
        return found
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"executor_options: '{text}' is neither NAME=VALUE nor the only file")
        options[name.strip()] = yaml_value(value, f"executor_options: {name.strip()}", ConfigError)
    return options
