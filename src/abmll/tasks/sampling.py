"""Which rows of a dataset become a task's examples: a choice that is the same on every machine, and their sides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from abmll.common.errors import DataError
from abmll.tasks.collection import Recipe
from abmll.tasks.order import permutation
from abmll.tasks.recipe import columns_of, example_of
from abmll.tasks.types import Example, content_hash, split_by_content

if TYPE_CHECKING:
    from datasets import Dataset

Splits = Mapping[str, "Dataset"]
MAX_TRAIN, MAX_TEST = 2000, 500  # examples of a task
_CHUNK = 1000  # rows that are in memory as Python's objects at a time


def examples_of(task: str, recipe: Recipe, splits: Splits) -> list[Example]:
    """A task's examples with their sides: training examples, then test examples, each in the order of the data.

    Of repeated questions one is kept. Of more than 2,000 and 500 questions (2,500 of a ``pool``) a choice is kept that
    depends on the task's name alone. Raises ``DataError`` for columns that are not there, and where a side is empty.
    """
    for split in recipe.splits:
        if unknown := columns_of(recipe) - set(splits[split].column_names):
            known = ", ".join(splits[split].column_names)
            raise DataError(f"{split} has no column '{min(unknown)}'; there are: {known}")
    seen: set[str] = set()
    if recipe.pool:
        pooled = _take(task, recipe, splits, recipe.pool, MAX_TRAIN + MAX_TEST, seen)
        sided = zip(pooled, split_by_content(pooled) if pooled else (), strict=True)
        examples = [replace(example, split=side) for example, side in sided]
        examples.sort(key=lambda example: example.split != "train")  # a stable sort
    else:  # the test examples first: of a question that is on both sides it is theirs
        test = _take(task, recipe, splits, (str(recipe.test),), MAX_TEST, seen)
        train = _take(task, recipe, splits, (str(recipe.train),), MAX_TRAIN, seen)
        examples = [replace(one, split="train") for one in train] + [replace(one, split="test") for one in test]
    if {example.split for example in examples} != {"train", "test"}:
        total = sum(len(splits[split]) for split in recipe.splits)
        raise DataError(f"of {total} rows {len(examples)} are questions, and a side has none; has the dataset changed?")
    return examples


def _take(task: str, recipe: Recipe, splits: Splits, names: Sequence[str], limit: int, seen: set[str]) -> list[Example]:
    """At most ``limit`` questions of the named splits that are none of ``seen``, in their order; they join it."""
    chosen = list(islice(_questions(task, recipe, splits, names, seen), limit))
    return [example for _, example in sorted(chosen, key=itemgetter(0))]


def _questions(
    task: str, recipe: Recipe, splits: Splits, names: Sequence[str], seen: set[str]
) -> Iterator[tuple[int, Example]]:
    """The questions of the named splits, none twice, with their places, in an order that the task's name determines."""
    places = [(name, place) for name in names for place in range(len(splits[name]))]
    order = permutation(len(places), 0, "fetch", task, *names)
    for start in range(0, len(order), _CHUNK):
        for number, row in _rows(
            recipe, splits, [(number, *places[number]) for number in order[start : start + _CHUNK]]
        ):
            name, place = places[number]
            example = example_of(recipe, f"{task}/{name}/{place}", row)
            if example is not None and (key := content_hash(example)) not in seen:
                seen.add(key)
                yield number, example


def _rows(
    recipe: Recipe, splits: Splits, wanted: Sequence[tuple[int, str, int]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows at (number, split, place) with their numbers, those of one split after another."""
    columns = sorted(columns_of(recipe))
    for name in dict.fromkeys(split for _, split, _ in wanted):
        numbers = [number for number, split, _ in wanted if split == name]
        chosen = [place for _, split, place in wanted if split == name]
        yield from zip(numbers, splits[name].select_columns(columns).select(chosen).to_list(), strict=True)
