"""Tasks out of files: rows become checked examples, and every mistake is named with its file and line.

The keys of a row are described in ``abmll.tasks.fields``. CrossFit's TSV (no header, ``input<TAB>output``) is read as
it is: the options are the file's distinct outputs. Which rows are a task whose answers are written says
``abmll.tasks.written``.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from abmll.common.errors import DataError
from abmll.tasks.fields import example_of, text_of
from abmll.tasks.rows import Row, is_table, read_rows, stem_of, suffix_of
from abmll.tasks.types import MAX_OPTIONS, Example, Task
from abmll.tasks.written import say_written, written_example

_FEW_SHOT_FILE = re.compile(r"(?P<task>.+)_\d+_\d+_(?P<split>train|dev|test)$")  # CrossFit, MetaICL: <task>_16_100_dev


def load_task(
    path: Path | str, *, name: str | None = None, require_answer: bool = True, generate: bool = False
) -> Task:
    """The task in one file (.jsonl, .json, .csv, .tsv, each also .gz; .parquet), as the module describes it.

    Args:
        name: instead of the rows' ``task``, or of the file's name.
        require_answer: refuse rows without an answer; otherwise theirs is None (questions to predict).
        generate: the answers are written, not chosen, whatever the file's form.

    Raises:
        DataError: the file or a row cannot be used; the text names file, line and remedy.
    """
    path = Path(path)
    rows = read_rows(path)
    names = _task_names(rows)
    if name is None and len(names) > 1:
        raise DataError(f"{path}: holds {len(names)} tasks ({names[0]}, {names[1]}, ...); give a file with one task")
    name = name or (names[0] if names else stem_of(path))
    return _build(name, rows, str(path), require_answer, is_table(path), generate)


def load_tasks(path: Path | str, *, generate: bool = False) -> list[Task]:
    """The tasks of a file, of a folder and its subfolders (all files of a known kind but ``manifest.json``), or of a
    Hugging Face dataset: ``hf:name`` or ``hf:folder``.

    A file whose rows name several tasks gives several. In a folder, files named as CrossFit's and MetaICL's
    (``<task>_16_100_train``, ``..._dev``, ``..._test``) are one task, whose dev examples count as test examples.
    With ``generate`` the answers of all of them are written.

    Raises:
        DataError: as ``load_task``; also for a folder without tasks, or two tasks of one name.
    """
    if str(path).startswith("hf:"):
        rows = _hub_rows(str(path).removeprefix("hf:"))
        return _by_task(rows, Path(str(path).removeprefix("hf:")).name, str(path), False, generate)
    path = Path(path)
    if not path.is_dir():
        return _by_task(read_rows(path), stem_of(path), str(path), is_table(path), generate)
    tasks = [task for files in _groups(path) for task in _load_group(*files, generate)]
    if not tasks:
        raise DataError(f"{path}: no task files in this folder")
    sources: dict[str, str] = {}
    for task in tasks:
        if task.name in sources:
            raise DataError(f"{task.source}: a task '{task.name}' is in {sources[task.name]} too; rename or remove one")
        sources[task.name] = task.source
    return tasks


def _groups(folder: Path) -> list[tuple[str, list[Path]]]:
    """(name, files) for every task of a folder: the few-shot files of one task together, any other by itself."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and suffix_of(file) and file.name != "manifest.json" and not hidden:
            match = _FEW_SHOT_FILE.match(stem_of(file))
            groups.setdefault((file.parent, match["task"] if match else stem_of(file)), []).append(file)
    return [(name, files) for (_, name), files in groups.items()]


def _load_group(name: str, files: Sequence[Path], generate: bool) -> list[Task]:
    if len(files) == 1 and not _FEW_SHOT_FILE.match(stem_of(files[0])):
        return _by_task(read_rows(files[0]), name, str(files[0]), is_table(files[0]), generate)
    rows, seen = [], {}
    for file in files:
        match = _FEW_SHOT_FILE.match(stem_of(file))
        split = match["split"] if match else None
        if split is None or split in seen:
            raise DataError(f"{file}: the same task and split as {seen.get(split, files[0])}; keep one of them")
        seen[split] = file
        rows += [Row(row.where, {**row.values, "split": split}) for row in read_rows(file)]
    return _by_task(rows, name, str(files[0].parent), all(is_table(file) for file in files), generate)


def _by_task(rows: Sequence[Row], name: str, source: str, cells_are_text: bool, generate: bool) -> list[Task]:
    """One task for each value of the rows' ``task``."""
    names = _task_names(rows)
    if len(names) < 2:
        return [_build(names[0] if names else name, rows, source, True, cells_are_text, generate)]
    groups: dict[str, list[Row]] = {key: [] for key in names}
    for row in rows:
        if row.values.get("task") is None:
            raise DataError(f"{row.where}: no key 'task', which other rows of this file have; add it")
        groups[row.values["task"]].append(row)
    return [_build(key, group, source, True, cells_are_text, generate) for key, group in groups.items()]


def _task_names(rows: Iterable[Row]) -> list[str]:
    """The distinct values of ``task``, in order of appearance."""
    return list(dict.fromkeys(text_of(row, "task") for row in rows if row.values.get("task") is not None))


def _build(
    name: str, rows: Sequence[Row], source: str, require_answer: bool, cells_are_text: bool, generate: bool
) -> Task:
    """The task of these rows; options that no row has are the distinct outputs (CrossFit), unless these are written."""
    outputs: tuple[str, ...] = ()
    written = generate or say_written(rows, cells_are_text)
    if not written and cells_are_text and all(row.values.keys() <= {"id", "input", "output", "split"} for row in rows):
        outputs = _distinct_outputs(rows, source, require_answer)
    examples: list[Example] = []
    places: dict[str, str] = {}
    families: dict[str, str] = {}
    for index, row in enumerate(rows):
        if written:
            example = written_example(row, f"{name}/{index}", require_answer)
        else:
            example = example_of(row, f"{name}/{index}", outputs, require_answer, cells_are_text)
        if example.id in places:
            raise DataError(f"{row.where}: id {example.id!r} is that of {places[example.id]} too; make ids unique")
        places[example.id] = row.where
        examples.append(example)
        if row.values.get("family") is not None:
            families[text_of(row, "family")] = row.where
    if len(families) > 1:
        raise DataError(f"{source}: the rows of task '{name}' name several families ({', '.join(families)}); keep one")
    return Task(name, tuple(examples), next(iter(families), None), source)


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


def _hub_rows(name: str) -> list[Row]:
    """The rows of a Hugging Face dataset, by name or folder; where it has several splits, each row carries its own."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f'hf:{name}: needs the datasets library; run: pip install "abmll[data]"') from error
    try:
        saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library raises its own, requests', huggingface_hub's and Arrow's
        raise DataError(f"hf:{name}: cannot be loaded ({(str(error) or repr(error)).splitlines()[0][:200]})") from error
    splits: dict[Any, Any] = loaded if isinstance(loaded, dict) else {"train": loaded}
    rows = []
    for split, table in splits.items():
        for index, values in enumerate(table):
            mark = {"split": str(split)} if len(splits) > 1 else {}
            rows.append(Row(f"hf:{name}: {split} row {index + 1}", {**dict(values), **mark}))
    return rows
