"""Collections of the hub's datasets become task files in the user's cache, one by one, beside a manifest.

A task counts as fetched once the manifest names it, with the hash of its file and of its recipe: a call that was
interrupted, or whose collection has changed since, fetches the rest. The manifest has licence, dataset and commit.
"""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from abmll.common.documents import read_json, write_document, write_json_lines
from abmll.common.errors import DataError
from abmll.common.files import disk_errors, sha256_file
from abmll.common.locks import sole_writer
from abmll.common.progress import progress
from abmll.tasks.collection import Collection, Recipe, collection_dir, read_collection
from abmll.tasks.hub_dataset import PARQUET, HubUnreachable, Say, files_of, load_hub, refuse_without_library
from abmll.tasks.hub_name import HubName
from abmll.tasks.sampling import Splits, examples_of
from abmll.tasks.types import Example

PATIENCE = 3600.0  # seconds that another process may take to fetch them


class Loaded(NamedTuple):
    """A task's splits, and the commit that they are of; None for a folder, which does not say."""

    splits: Splits
    commit: str | None


def fetch_collection(
    name: str,
    say: Say,
    quiet: bool = False,
    source: Path | None = None,
    collection: Collection | None = None,
) -> Path:
    """Make a collection's tasks available; a second call verifies the hashes, and fetches what is not there.

    Args:
        say: told in one line each of every task, its dataset and licence, before anything is fetched, then of every
            download, and of the tasks that are not fetched.
        quiet: no progress bars.
        source: a folder with copies of the datasets, as OWNER/NAME, instead of the hub.
        collection: what to fetch, by default the shipped collection of that ``name``.

    Returns:
        The folder with ``<task>.jsonl`` and ``manifest.json``.

    Raises:
        DataError: the hub cannot be reached, which ends it at once; a dataset that is not there or has other columns
            than it had, after all others were fetched; no ``datasets`` library.
        AbmllError: the disk is full or cannot be written to.
    """
    collection = collection or read_collection(name)
    folder = collection_dir(name)
    if _missing(folder, collection, _known(folder)):
        refuse_without_library(collection.name)
        with ExitStack() as stack:
            with disk_errors(folder):
                stack.enter_context(sole_writer(folder, patience=PATIENCE))  # of several processes one fetches them
            _fetch(folder, collection, say, quiet, source)
    return folder


def _fetch(folder: Path, collection: Collection, say: Say, quiet: bool, source: Path | None) -> None:
    described = _known(folder)
    missing = _missing(folder, collection, described)
    for task in missing:
        recipe = collection.tasks[task]
        warning = "; insults or hurts" if recipe.sensitive else ""
        say(f"{task}: {recipe.source}, licence: {recipe.licence}{warning}")
    for task, reason in collection.elsewhere.items():
        say(f"{task}: not fetched ({reason}); give its file with --data-dir")
    failed: dict[str, DataError] = {}
    with progress(len(missing), f"Fetching {collection.name}", unit="task", quiet=quiet) as bar:
        for task in missing:
            try:
                described[task] = _fetch_task(folder, task, collection.tasks[task], say, source)
            except HubUnreachable as error:
                total = len(collection.tasks)
                kept = total - len(_missing(folder, collection, described))
                here = (
                    f"{kept} of {total} tasks are in {folder}; a second call fetches the rest, --archive takes copies"
                )
                raise HubUnreachable(f"{error}; {here}") from error
            except DataError as error:
                failed[task] = error
            else:
                tasks = {name: described[name] for name in sorted(described) if name in collection.tasks}
                write_document(folder / "manifest.json", "collection", {"collection": collection.name, "tasks": tasks})
            bar.update()
    if failed:
        task, error = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more: {', '.join(list(failed)[1:])})" if len(failed) > 1 else ""
        raise DataError(f"{task}{others} could not be fetched: {error}; the other tasks are in {folder}")
    say(f"{len(collection.tasks)} tasks of {collection.name} are in {folder}")


def _known(folder: Path) -> dict[str, Any]:
    """What the manifest says of each task; nothing where there is none that can be read."""
    try:
        return read_json(folder / "manifest.json", "collection", "fetch it again", DataError)["tasks"]
    except DataError:
        return {}


def _missing(folder: Path, collection: Collection, described: Mapping[str, Any]) -> list[str]:
    """The tasks that are not there as the collection has them, with every byte as it was written."""

    def is_there(task: str, recipe: Recipe) -> bool:
        path, known = folder / f"{task}.jsonl", described.get(task)
        return (
            known is not None
            and known["recipe"] == _hash_of(recipe)
            and path.is_file()
            and sha256_file(path) == known["sha256"]
        )

    return [task for task, recipe in collection.tasks.items() if not is_there(task, recipe)]


def _hash_of(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


def _fetch_task(folder: Path, task: str, recipe: Recipe, say: Say, source: Path | None) -> dict[str, Any]:
    """Write one task's file; what the manifest says of it."""
    splits, commit = _load(recipe, say, source)
    try:
        examples = examples_of(task, recipe, splits)
    except DataError as error:
        raise DataError(f"{recipe.source}: {error}") from error
    path = folder / f"{task}.jsonl"
    write_json_lines(path, (_row(task, example) for example in examples))
    train = sum(example.split == "train" for example in examples)
    return {
        "sha256": sha256_file(path),
        "train": train,
        "test": len(examples) - train,
        "options": sorted({len(example.options) for example in examples}),
        "dataset": recipe.dataset,
        "config": recipe.config,
        "commit": commit,
        "is_pinned": recipe.revision is not None and commit is not None,
        "licence": recipe.licence,
        "sensitive": recipe.sensitive,
        "recipe": _hash_of(recipe),
    }


def _row(task: str, example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "task": task,
        "split": example.split,
        "input": example.input,
        "options": list(example.options),
        "answer": example.answer,
    }


def _load(recipe: Recipe, say: Say, source: Path | None) -> Loaded:
    """The splits of a recipe's dataset: at its commit, or of the newest commit of the hub's own Parquet files."""
    name = HubName(recipe.dataset, recipe.config, recipe.revision)
    files = recipe.files_of_splits
    size = None
    if source is None and name.folder is not None:
        raise DataError(
            f"{name.path}: is a folder here, not the hub's dataset; use it with --archive . or call from another folder"
        )
    if source is not None:
        name = HubName(str(source / recipe.dataset), recipe.config)
        if name.folder is None:
            raise DataError(f"{name.path}: no such folder; put a copy of the dataset there, or leave the folder out")
    elif files:
        patterns = tuple(files.values())
        commit, size = files_of(HubName(recipe.dataset, revision=recipe.revision or PARQUET), patterns)
        name = name._replace(revision=commit)
    found = load_hub(name, say, quiet=True, files=files, size=size).splits
    if absent := [split for split in recipe.splits if split not in found]:
        raise DataError(f"{recipe.source}: no split '{absent[0]}'; there are: {', '.join(found)}")
    return Loaded(found, name.revision)
