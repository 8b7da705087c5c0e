"""How many options the tasks of the shipped suites have, and how long their inputs are, known without the tasks."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import yaml

FILE = Path(__file__).with_name("task_shapes.yaml")
CHARACTERS_A_TOKEN = 4  # of English, roughly
AROUND = 40  # tokens of instruction, name, options and answer, roughly


class TaskShape(NamedTuple):
    """A task's most frequent number of options, and its inputs' mean length in characters."""

    options: int = 2
    characters: int = 400

    @property
    def tokens(self) -> int:
        """Of an input alone."""
        return max(self.characters // CHARACTERS_A_TOKEN, 1)


def task_shape(name: str) -> TaskShape:
    """The shape of a task; the usual one in the place of what is not known of it."""
    options, characters = _known().get(name, (None, None))
    return TaskShape(options or TaskShape().options, characters or TaskShape().characters)


def mean_tokens(names: Sequence[str], longest: int | None) -> int:
    """Tokens of an example with its prompt, on average over tasks, none longer than ``longest``."""
    lengths = [task_shape(name).tokens + AROUND for name in names]
    return round(fmean(lengths if longest is None else [min(length, longest) for length in lengths]))


@cache
def _known() -> dict[str, tuple[int | None, int | None]]:
    return {name: (pair[0], pair[1]) for name, pair in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}
