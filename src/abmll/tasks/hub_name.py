"""How a dataset of the Hugging Face hub is named: ``hf:NAME[CONFIG]@REVISION:SPLIT``, of which NAME alone is needed.

hf:imdb                      all of its splits
hf:nyu-mll/glue[sst2]:train  a config, and one split of it
hf:imdb@main                 a branch, tag or commit
hf:./folder[en]              a folder: a dataset's repository as it was cloned, or what ``save_to_disk`` wrote
"""

import re
from pathlib import Path
from typing import NamedTuple

from abmll.common.errors import ConfigError
from abmll.tasks.rows import stem_of

PREFIX = "hf:"
FORM = "hf:NAME[CONFIG]@REVISION:SPLIT"
_PATTERN = re.compile(
    r"hf:(?P<path>[^\[\]@]+?)(\[(?P<config>[^\[\]]+)\])?(@(?P<revision>[^:\[\]]+))?(:(?P<split>[\w.-]+))?"
)


class HubName(NamedTuple):
    """A dataset, and which part of it; None where nothing is said."""

    path: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        config = f"[{self.config}]" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.path}{config}{revision}" + (f":{self.split}" if self.split else "")

    @property
    def folder(self) -> Path | None:
        """The folder that has the data, if it is no name on the hub."""
        path = Path(self.path).expanduser()
        return path if path.is_dir() else None

    @property
    def looks_local(self) -> bool:
        """Whether it can only be a folder: a name on the hub has one slash at most, and no other marks than these."""
        return not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.path)


def is_hub(where: Path | str) -> bool:
    """Whether a place is named in this form."""
    return str(where).startswith(PREFIX)


def parse_hub(where: Path | str) -> HubName:
    """The parts of a name. Raises ``ConfigError`` for what has another form."""
    text = where.as_posix() if isinstance(where, Path) else where
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text}: is no dataset's name; write {FORM}, of which NAME alone is needed")
    return HubName(**match.groupdict())


def task_name(where: Path | str) -> str:
    """What a task is called whose rows say nothing: its file, or dataset and config (as MetaICL's "glue-sst2")."""
    if not is_hub(where):
        return "task" if str(where) == "-" else stem_of(Path(where))
    name = parse_hub(where)
    base = Path(name.path).name
    return base if name.config in (None, "default") else f"{base}-{name.config}"
