"""The YAML file of a collection that ``abmll tasks fetch`` brings: its tasks, from which datasets of the hub, and how.

name: my-collection
description: one sentence
tasks:
  glue-cola:
    dataset: nyu-mll/glue
    config: cola
    revision: 40 hexadecimal digits   # without it the newest commit of the hub's own Parquet copy, which is said
    files: "data/{config}/{split}.tsv" # optional: where the splits lie, in Parquet or TSV; else the dataset says it
    licence: what the data's author allows
    sensitive: true                   # optional: rows insult or hurt
    train: train                      # the splits of the two sides; or ``pool``: [splits], divided by content
    test: validation
    input: "{sentence}"               # columns in braces; "choices.text" and "output.0.answer" go deeper
    options: [unacceptable, acceptable]
    answer: {index: label}
elsewhere: {task: why it is not fetched}   # tasks of the same list which the hub has in no form that is read

Nothing in it is code, and no dataset's script is run. ``recipe.py`` makes examples of rows.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from abmll.common.bounded_yaml import yaml_value
from abmll.common.errors import ConfigError
from abmll.common.files import cache_dir
from abmll.tasks.bigbench import bigbench_dir

Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][\w.,()+-]{0,200}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
OPTIONS = ("columns", "items", "scores", "lettered")
ANSWERS = ("index", "letter", "text", "majority", "rating", "first", "scores", "pair")


class Part(BaseModel):
    """A part of the file; an unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(Part):
    """Options that differ by row; one of the four is set."""

    columns: tuple[Text, ...] | None = None  # a column each
    items: Text | None = None  # a column of lists
    scores: Text | None = None  # the keys of a column {option: score}, a dictionary or its JSON
    lettered: Text | None = None  # "(A) ... (B) ..." at the end of a column's text

    @model_validator(mode="after")
    def _is_one(self) -> "Options":
        return _one_of(self, OPTIONS)


class Answer(Part):
    """Where the right option stands; one of the eight is set. A row for which it says nothing is left out."""

    index: Text | None = None  # its place, as a number or its digits
    start: int = 0  # the number of the first option
    letter: Text | None = None  # its label; with ``labels`` the column of all labels, else A, B, C, ...
    labels: Text | None = None
    text: Text | None = None  # the option itself
    majority: Text | None = None  # a column of lists: the place that more than half of them name
    rating: Text | None = None  # a number: below ``low`` the first option, above ``high`` the second
    low: float = 0.5
    high: float = 0.5
    first: bool | None = None  # always the first of ``options``, which are then shuffled
    scores: Text | None = None  # the only one whose score is 1
    pair: tuple[Text, Text] | None = None  # two columns, the right one first: {first} and {second} of the input

    @model_validator(mode="after")
    def _is_one(self) -> "Answer":
        return _one_of(self, ANSWERS)


class Recipe(Part):
    """A task: the dataset, its splits, and how a row becomes a question."""

    dataset: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*/\w[\w.-]*$")]
    config: Text = "default"
    revision: Commit | None = None
    files: Text | None = None
    licence: Text
    sensitive: bool = False
    train: Text | None = None
    test: Text | None = None
    pool: tuple[Text, ...] = ()
    input: Text
    options: Annotated[tuple[Text, ...], Field(min_length=2, max_length=200)] | Options
    answer: Answer
    shuffle: bool = False  # the options in the order of their hashes: where the data's order gives the answer away

    @model_validator(mode="after")
    def _has_sides(self) -> "Recipe":
        if bool(self.pool) == bool(self.train or self.test) or bool(self.train) != bool(self.test):
            raise ValueError("give train and test, or pool")
        if self.answer.first and not self.shuffle:
            raise ValueError("where the first option is always right, shuffle must be true")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are read, in their order."""
        return self.pool or (str(self.train), str(self.test))

    @property
    def files_of_splits(self) -> dict[str, str]:
        """The pattern of each split's files; none where the dataset itself says which they are."""
        pattern = self.files or (None if self.revision else "{config}/{split}/*.parquet")
        return {split: pattern.format(config=self.config, split=split) for split in self.splits} if pattern else {}

    @property
    def source(self) -> str:
        """The dataset as users name it."""
        revision = self.revision[:8] if self.revision else "newest, not pinned"
        return f"hf:{self.dataset}[{self.config}] at {revision}"


class Collection(Part):
    """A collection's file, checked."""

    name: Text
    description: Text
    tasks: Annotated[dict[TaskName, Recipe], Field(min_length=1)]
    elsewhere: dict[TaskName, Text] = {}


def shipped_collections() -> tuple[str, ...]:
    """The names of the collections that come with the package, but for ``bigbench``, which no file describes."""
    folder = files("abmll.tasks") / "collections"
    return tuple(sorted(one.name.removesuffix(".yaml") for one in folder.iterdir() if one.name.endswith(".yaml")))


def collection_folders() -> dict[str, Path]:
    """The folder of each collection in the cache, ``bigbench`` among them, whether it was fetched or not."""
    return {folder.name: folder for folder in (bigbench_dir(), *map(collection_dir, shipped_collections()))}


def collection_dir(name: str) -> Path:
    """Where a collection's tasks lie in the user's cache, once they were fetched."""
    return cache_dir() / "tasks" / name


@cache
def read_collection(name: str) -> Collection:
    """The file of a shipped collection."""
    text = (files("abmll.tasks") / "collections" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_collection(text, f"collection '{name}'")


def parse_collection(text: str, where: str) -> Collection:
    """What a collection's YAML says. Raises ``ConfigError`` in one line, with the key that is wrong."""
    values: Any = yaml_value(text, where, ConfigError)
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if not str(key).startswith(".")}  # parts that are reused
    try:
        return Collection.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def collection_with(task: str) -> str | None:
    """The shipped collection that brings a task, if one does."""
    return next((name for name in shipped_collections() if task in read_collection(name).tasks), None)


def _one_of(part: Any, names: tuple[str, ...]) -> Any:
    given = [name for name in names if getattr(part, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(names)}, not {', '.join(given) or 'none'}")
    return part
