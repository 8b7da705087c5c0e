"""Tasks out of files and datasets: rows become checked examples, and every mistake is named with its file and line.

The keys of a row are described in ``abmll.tasks.fields``. CrossFit's TSV (no header, ``input<TAB>output``) is read as
it is: the options are the file's distinct outputs. Rows of ``text`` and ``label`` are ``abmll.tasks.text_label``,
and ``abmll.tasks.written`` says which rows are a task whose answers are written.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from abmll.common.errors import DataError
from abmll.common.progress import progress
from abmll.tasks.columns import Table
from abmll.tasks.fields import example_of, text_of
from abmll.tasks.hub_dataset import load_hub
from abmll.tasks.hub_name import is_hub, parse_hub, task_name
from abmll.tasks.look_alikes import warning_of
from abmll.tasks.mapping import (
    FLAG,
    ColumnMapping,
    check_mapping,
    columns_of,
    refuse_missing,
    renamed,
    renamed_row,
)
from abmll.tasks.row_spool import RowSpool
from abmll.tasks.rows import Row, as_texts, is_table, iterate_rows, read_rows, stem_of, suffix_of
from abmll.tasks.shelf import IN_MEMORY, Shelf
from abmll.tasks.text_label import check_columns, has_labels, labelled
from abmll.tasks.types import MAX_OPTIONS, Example, Task
from abmll.tasks.written import say_written, written_example

SHOW_PROGRESS = 10 * 10**6  # bytes; fewer take about a second
_FEW_SHOT_FILE = re.compile(r"(?P<task>.+)_\d+_\d+_(?P<split>train|dev|test)$")  # CrossFit, MetaICL: <task>_16_100_dev


class _Source(NamedTuple):
    """Rows under our names, and what is known of where they are from."""

    name: str  # of their task, where they say nothing
    rows: Sequence[Row]
    where: str
    cells_are_text: bool = False
    classes: tuple[str, ...] = ()  # the labels that there can be, in their order


class _Reading(NamedTuple):
    """How sources are read, the same for all of them."""

    mapping: ColumnMapping
    announce: Callable[[str], None]
    quiet: bool
    generate: bool = False
    require_answer: bool = True


def load_task(
    path: Path | str,
    *,
    name: str | None = None,
    require_answer: bool = True,
    column_mapping: ColumnMapping | None = None,
    announce: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
    generate: bool = False,
) -> Task:
    """The task in one file (.jsonl, .json, .csv, .tsv, each also .gz; .parquet) or dataset, as the module describes it.

    Args:
        path: a file, or a Hugging Face dataset: ``hf:NAME`` (``abmll.tasks.hub_name``).
        name: instead of the rows' ``task``, or of the file's name.
        require_answer: refuse rows without an answer; otherwise theirs is None (questions to predict).
        column_mapping: the file's names of columns, and ours: ``{"sentence": "text", "category": "label"}``.
        announce: told in one line each what is downloaded, and what is left out.
        quiet: show no progress of a download.
        generate: the answers are written, not chosen, whatever the file's form.

    Raises:
        DataError: the file or a row cannot be used; the text names file, line and remedy.
    """
    how = _Reading(column_mapping or {}, announce, quiet, generate, require_answer)
    return _one_task(_from_hub(path, how) if is_hub(path) else _from_file(Path(path), how), name, how)


def task_of(
    table: Table,
    path: Path,
    *,
    name: str | None = None,
    require_answer: bool = True,
    announce: Callable[[str], None] = lambda line: None,
    generate: bool = False,
) -> Task:
    """The task in a table of our own form that was read from ``path``; as ``load_task``, without reading it again."""
    how = _Reading(table.mapping, announce, True, generate, require_answer)
    if suffix_of(path).startswith(".tsv") and not table.mapping and "input" not in table.columns:
        return _one_task(_from_file(path, how), name, how)  # CrossFit's: the table took its first line for a header
    cells = (cell for row in table.rows for cell in row.values.values())
    are_texts = is_table(path) or (str(path) == "-" and all(isinstance(cell, str) for cell in cells))
    rows = renamed(as_texts(table.rows) if are_texts else table.rows, table.mapping, table.where)
    return _one_task(_Source(task_name(path), rows, table.where, are_texts), name, how)


def load_tasks(
    path: Path | str,
    *,
    column_mapping: ColumnMapping | None = None,
    announce: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
    generate: bool = False,
) -> list[Task]:
    """The tasks of a file, of a folder and its subfolders (all files of a known kind but ``manifest.json``), or of a
    Hugging Face dataset: ``hf:NAME`` (``abmll.tasks.hub_name``).

    A file whose rows name several tasks gives several. In a folder, files named as CrossFit's and MetaICL's
    (``<task>_16_100_train``, ``..._dev``, ``..._test``) are one task, whose dev examples count as test examples.
    ``column_mapping`` is that of every file; it, ``announce``, ``quiet`` and ``generate`` are as for
    ``load_task``.

    Raises:
        DataError: as ``load_task``; also for a folder without tasks, or two tasks of one name.
    """
    how = _Reading(column_mapping or {}, announce, quiet, generate)
    if is_hub(path):
        return list(_by_task(_from_hub(path, how), how))
    path, shelf = Path(path), Shelf()
    if not path.is_dir():
        return [shelf.put(task) for task in _of_file(path, stem_of(path), how)]
    tasks: list[Task] = []
    groups = [(name, files, sum(file.stat().st_size for file in files)) for name, files in _groups(path)]
    size = sum(size for _, _, size in groups)
    with progress(size, "reading the tasks", "B", quiet=quiet or size < SHOW_PROGRESS) as bar:
        for name, files, size in groups:
            tasks += map(shelf.put, _of_group(name, files, how))
            bar.update(size)
    if not tasks:
        raise DataError(f"{path}: no task files in this folder")
    sources: dict[str, str] = {}
    for task in tasks:
        if task.name in sources:
            raise DataError(f"{task.source}: a task '{task.name}' is in {sources[task.name]} too; rename or remove one")
        sources[task.name] = task.source
    return tasks


def _from_file(path: Path, how: _Reading) -> _Source:
    return _Source(
        stem_of(path),
        renamed(read_rows(path, has_header=bool(how.mapping)), how.mapping, str(path)),
        str(path),
        is_table(path),
    )


def _from_hub(where: Path | str, how: _Reading) -> _Source:
    """The rows of a dataset; where two splits of it are used, each row carries its side."""
    dataset = load_hub(parse_hub(where), how.announce, how.quiet)
    tables = dataset.sides(how.mapping, how.announce)
    rows: list[Row] = []
    classes: tuple[str, ...] = ()
    for split, table in tables.items():
        own = renamed(table.rows, how.mapping, str(where))
        if len(tables) > 1:
            own = [Row(row.where, row.values | {"split": split} | _id_in(split, row)) for row in own]
        rows += own
        labels = next((theirs for theirs, ours in how.mapping.items() if ours == "label"), "label")
        classes = classes or table.classes.get(labels, ())
    check_columns(columns_of(rows), str(where))
    return _Source(task_name(where), rows, str(where), classes=classes)


def _id_in(split: str, row: Row) -> dict[str, str]:
    """Ids that are counted anew in every split become distinct."""
    own = row.values.get("id")
    return {} if own is None else {"id": f"{split}/{own}"}


def _groups(folder: Path) -> list[tuple[str, list[Path]]]:
    """(name, files) for every task of a folder: the few-shot files of one task together, any other by itself."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and suffix_of(file) and file.name != "manifest.json" and not hidden:
            match = _FEW_SHOT_FILE.match(stem_of(file))
            groups.setdefault((file.parent, match["task"] if match else stem_of(file)), []).append(file)
    return [(name, files) for (_, name), files in groups.items()]


def _of_group(name: str, files: Sequence[Path], how: _Reading) -> Iterator[Task]:
    if len(files) == 1 and not _FEW_SHOT_FILE.match(stem_of(files[0])):
        yield from _of_file(files[0], name, how)
        return
    rows, seen = [], {}
    for file in files:
        match = _FEW_SHOT_FILE.match(stem_of(file))
        split = match["split"] if match else None
        if split is None or split in seen:
            raise DataError(f"{file}: the same task and split as {seen.get(split, files[0])}; keep one of them")
        seen[split] = file
        rows += [Row(row.where, {**row.values, "split": split}) for row in _from_file(file, how).rows]
    yield from _by_task(_Source(name, rows, str(files[0].parent), all(is_table(file) for file in files)), how)


def _of_file(path: Path, name: str, how: _Reading) -> Iterator[Task]:
    """The tasks of a file: one of many rows goes by way of the disk, in memory that its largest task bounds."""
    check_mapping(how.mapping)
    rows = iterate_rows(path, has_header=bool(how.mapping))
    held = deque(islice(rows, IN_MEMORY + 1))
    source = _Source(name, (), str(path), is_table(path))
    if len(held) <= IN_MEMORY:
        yield from _by_task(source._replace(rows=renamed(list(held), how.mapping, source.where)), how)
        return
    how.announce(f"{path}: more than {IN_MEMORY:,} rows; they are sorted by task in a temporary file")
    sorted_rows = _by_way_of_disk(chain((held.popleft() for _ in range(len(held))), rows), source.where, how.mapping)
    names = [task for task in sorted_rows.tasks if task is not None]
    if len(names) < 2:
        yield from _by_task(_from_file(path, how)._replace(name=name), how)
        return
    for row in sorted_rows.rows(None):
        raise _no_task(row)
    with progress(sorted_rows.length, "building the tasks", "row", quiet=how.quiet) as bar:
        for task in names:
            own = list(sorted_rows.rows(task))
            yield _build(source._replace(name=task, rows=own), how)
            bar.update(len(own))


def _by_way_of_disk(rows: Iterable[Row], where: str, mapping: ColumnMapping) -> RowSpool:
    """The rows under our names, by their task."""
    columns, spool = {}, RowSpool()
    for row in rows:
        columns |= dict.fromkeys(row.values)
        own = renamed_row(row, mapping)
        spool.add(None if own.values.get("task") is None else text_of(own, "task"), own)
    refuse_missing(mapping, tuple(columns), where, FLAG)
    return spool


def _one_task(source: _Source, name: str | None, how: _Reading) -> Task:
    """All rows as one task, which ``name`` may name."""
    names = _task_names(source.rows)
    if name is None and len(names) > 1:
        where = source.where
        raise DataError(f"{where}: holds {len(names)} tasks ({names[0]}, {names[1]}, ...); give a file with one task")
    return _build(source._replace(name=name or (names[0] if names else source.name)), how)


def _by_task(source: _Source, how: _Reading) -> Iterator[Task]:
    """One task for each value of the rows' ``task``."""
    names = _task_names(source.rows)
    if len(names) < 2:
        yield _one_task(source, None, how)
        return
    groups: dict[str, list[Row]] = {key: [] for key in names}
    for row in source.rows:
        if row.values.get("task") is None:
            raise _no_task(row)
        groups[row.values["task"]].append(row)
    for key, group in groups.items():
        yield _build(source._replace(name=key, rows=group), how)


def _no_task(row: Row) -> DataError:
    return DataError(f"{row.where}: no key 'task', which other rows of this file have; add it")


def _task_names(rows: Iterable[Row]) -> list[str]:
    """The distinct values of ``task``, in order of appearance."""
    return list(dict.fromkeys(text_of(row, "task") for row in rows if row.values.get("task") is not None))


def _build(source: _Source, how: _Reading) -> Task:
    """The task of these rows; options that no row has are the labels, or the distinct outputs (CrossFit)."""
    name, rows, outputs = source.name, source.rows, ()
    columns = columns_of(rows)
    written = how.generate or say_written(rows, source.cells_are_text)
    if not written and has_labels(columns):
        rows, outputs = labelled(rows, source.classes, source.where, how.require_answer, how.announce)
    elif not written and source.cells_are_text and {"id", "input", "output", "split"}.issuperset(columns):
        outputs = _distinct_outputs(rows, source.where, how.require_answer)
    examples: list[Example] = []
    places: dict[str, str] = {}
    families: dict[str, str] = {}
    warned: set[str] = set()
    for index, row in enumerate(rows):
        if written:
            example = written_example(row, f"{name}/{index}", how.require_answer)
        else:
            example = example_of(row, f"{name}/{index}", outputs, how.require_answer, source.cells_are_text)
        if example.id in places:
            raise DataError(f"{row.where}: id {example.id!r} is that of {places[example.id]} too; make ids unique")
        places[example.id] = row.where
        if not written and (warning := warning_of(example.options)) and warning not in warned:
            warned.add(warning)
            how.announce(f"{row.where}: {warning}")
        examples.append(example)
        if row.values.get("family") is not None:
            families[text_of(row, "family")] = row.where
    if len(families) > 1:
        found = ", ".join(families)
        raise DataError(f"{source.where}: the rows of task '{name}' name several families ({found}); keep one")
    return Task(name, tuple(examples), next(iter(families), None), source.where)


def _distinct_outputs(rows: Sequence[Row], source: str, require_answer: bool) -> tuple[str, ...]:
    """The options of a file that has inputs and outputs alone; rows without an output are questions."""
    answered = rows if require_answer else [row for row in rows if "output" in row.values]
    outputs = sorted({text_of(row, "output").strip() for row in answered})
    if not outputs:
        raise DataError(
            f"{source}: inputs without options to choose from; add columns option_1, option_2, ..., or a column "
            "'options' with JSON lists"
        )
    if len(outputs) > MAX_OPTIONS:
        raise DataError(
            f"{source}: {len(outputs)} distinct outputs, of which each would be an option; at most {MAX_OPTIONS} are "
            "possible. Leave out the rows of rare outputs, give every row options of its own, or say --generate to "
            "have the outputs written"
        )
    return tuple(outputs)
