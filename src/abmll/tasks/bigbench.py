"""BIG-bench's multiple-choice tasks, read as data out of the source archive of the ``bigbench`` package.

The archive is read as a stream: nothing of it is unpacked to the disk, imported or executed. Every task becomes a JSONL
file in the user's cache, beside a manifest with hashes and the canary string that marks BIG-bench's texts.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from abmll.common.documents import json_lines, read_json, write_document
from abmll.common.download import IndexFile, fetch_from_index
from abmll.common.errors import DataError
from abmll.common.files import atomic_folder, cache_dir, sha256_file, write_text
from abmll.common.locks import sole_writer
from abmll.common.progress import progress
from abmll.tasks.types import Example, split_by_content

SDIST = IndexFile(
    project="bigbench",
    filename="bigbench-1.0.0.tar.gz",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    size=358249635,
)
MAX_OPTIONS = 26  # fewer than other tasks may have: a higher limit would change the tasks of earlier versions
MIN_ROWS = 50
MAX_ROWS = 2000
PATIENCE = 3600.0  # seconds that another process may take to fetch them


class Source(NamedTuple):
    """A ``task.json`` of the archive: task name, family (its top folder) and content."""

    name: str
    family: str
    content: dict[str, Any]


def bigbench_dir() -> Path:
    """Where the converted tasks lie in the user's cache, once they were fetched."""
    return cache_dir() / "tasks" / "bigbench"


def fetch_bigbench(
    announce: Callable[[str], None], quiet: bool = False, sdist: Path | None = None, archive: IndexFile = SDIST
) -> Path:
    """Make the BIG-bench tasks available; a second call verifies the hashes and returns at once.

    Args:
        announce: told in one line each what is fetched and what came of it.
        quiet: no progress bars.
        sdist: an archive that is already here, which is kept; by default it is downloaded and deleted again.
        archive: where the archive is found, and the hash it must have.

    Returns:
        The folder with ``<task>.jsonl`` and ``manifest.json``.

    Raises:
        AbmllError: no network, no room on the disk; ``DataError`` for an archive with another hash.
    """
    folder = bigbench_dir()
    if not _is_complete(folder, archive):
        with sole_writer(folder, patience=PATIENCE):  # of several processes one fetches them
            if not _is_complete(folder, archive):
                _fetch(folder, announce, quiet, sdist, archive)
    return folder


def _fetch(folder: Path, announce: Callable[[str], None], quiet: bool, sdist: Path | None, archive: IndexFile) -> None:
    path = cache_dir() / archive.filename if sdist is None else Path(sdist)
    if sdist is None:
        fetch_from_index(archive, path, announce, quiet)
    elif not path.is_file():
        raise DataError(f"{path}: no such file; give the path of {archive.filename}")
    elif (found := sha256_file(path)) != archive.sha256:
        raise DataError(f"{path}: SHA-256 is {found}, expected {archive.sha256}; it is not {archive.filename}")
    tasks = convert(path, folder, archive, quiet)
    if sdist is None:
        path.unlink()
    announce(f"{len(tasks)} BIG-bench tasks are in {folder}")


def _is_complete(folder: Path, archive: IndexFile) -> bool:
    """Whether the folder holds a conversion of this archive, in this format, with every file unchanged."""
    try:
        manifest = read_json(folder / "manifest.json", "bigbench", "fetch it again", DataError)
        tasks = manifest["tasks"] if manifest["archive_sha256"] == archive.sha256 else {}
        return bool(tasks) and all(sha256_file(folder / f"{name}.jsonl") == tasks[name]["sha256"] for name in tasks)
    except (DataError, OSError, KeyError):
        return False


def convert(sdist: Path, folder: Path, archive: IndexFile = SDIST, quiet: bool = False) -> dict[str, Any]:
    """Write every suitable task of the archive, and the manifest, to ``folder`` (replacing it as a whole).

    A task is suitable if at least 50 of its rows are: 2 to 26 distinct options of which exactly one scores 1 and the
    others 0. Repeated rows count once. Of more than 2,000 rows a random 2,000 are kept, the same ones always.

    Returns:
        The manifest's description of each task: sha256, rows, options, family, canary, description.
    """
    tasks: dict[str, Any] = {}
    with atomic_folder(folder, overwrite=True) as temporary:
        for source in _sources(sdist, quiet):
            rows = _rows(source)
            if not rows:
                continue
            path = temporary / f"{source.name}.jsonl"
            write_text(path, json_lines(rows))
            tasks[source.name] = {
                "sha256": sha256_file(path),
                "rows": len(rows),
                "options": sorted({len(row["options"]) for row in rows}),
                "family": source.family,
                "canary": source.content.get("canary"),
                "description": source.content.get("description"),
            }
        tasks = dict(sorted(tasks.items()))
        about = {"archive": archive.filename, "archive_sha256": archive.sha256, "tasks": tasks}
        write_document(temporary / "manifest.json", "bigbench", about)
    return tasks


def _sources(sdist: Path, quiet: bool) -> Iterator[Source]:
    """The ``task.json`` files of the archive, in its order."""
    try:
        with (
            open(sdist, "rb") as file,
            progress(sdist.stat().st_size, "Converting BIG-bench", unit="B", quiet=quiet) as bar,
            tarfile.open(fileobj=file, mode="r|gz") as tar,
        ):
            for member in tar:
                bar.update(file.tell() - bar.n)
                _, marker, inner = member.name.partition("/benchmark_tasks/")
                if marker and member.isfile() and inner.endswith("/task.json"):
                    file_in_tar = tar.extractfile(member)
                    raw = file_in_tar.read() if file_in_tar else b""
                    folders = inner.split("/")[:-1]
                    if b'"target_scores"' in raw:  # the others have no options; parsing them takes most of the time
                        yield Source(".".join(folders), folders[0], json.loads(raw))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{sdist}: not a readable archive ({error}); fetch it again") from error


def _rows(source: Source) -> list[dict[str, Any]]:
    """The suitable rows of a task in the order of the source, options shuffled, each with its side of the split."""
    items = source.content.get("examples", [])
    questions: dict[tuple[str, frozenset[str]], tuple[int, dict[str, int]]] = {}
    # Python promises that random() gives the same numbers for a seed in all its versions; sample() it does not.
    random = Random(0).random
    for _, index in sorted((random(), index) for index in range(len(items))):
        scores = _scores(items[index])
        if scores:
            questions.setdefault((_text(source, items[index]), frozenset(scores)), (index, scores))
        if len(questions) == MAX_ROWS:
            break
    if len(questions) < MIN_ROWS:
        return []
    in_order = sorted((index, text, scores) for (text, _), (index, scores) in questions.items())
    examples = [_example(source, *question) for question in in_order]
    shared = {"task": source.name, "family": source.family}
    return [
        {"id": one.id, **shared, "split": side, "input": one.input, "options": one.options, "answer": one.answer}
        for one, side in zip(examples, split_by_content(examples), strict=True)
    ]


def _scores(item: dict[str, Any]) -> dict[str, int]:
    """The score of each option, or nothing if this is not a question with exactly one right option."""
    target_scores = item.get("target_scores") or {}
    scores = {str(option).strip(): score for option, score in target_scores.items()}
    single = sorted(scores.values()) == [0] * (len(scores) - 1) + [1]
    distinct = len(scores) == len(target_scores) and all(scores)
    return scores if single and distinct and 2 <= len(scores) <= MAX_OPTIONS else {}


def _text(source: Source, item: dict[str, Any]) -> str:
    """The question. The task's own prefix (an instruction, a table that all rows are about) is part of it.

    The prefixes of single rows ("Q:", "A:") are decoration and left out.
    """
    parts = [str(source.content.get("task_prefix") or "").strip(), str(item["input"]).strip()]
    return "\n".join(part for part in parts if part)


def _example(source: Source, index: int, text: str, scores: dict[str, int]) -> Example:
    """The example, its options in the order of their hashes: in the source the order often gives the answer away."""
    options = sorted(scores, key=lambda option: hashlib.sha256((text + option).encode()).digest())
    answer = next(position for position, option in enumerate(options) if scores[option] == 1)
    return Example(f"{source.name}/{index}", text, tuple(options), answer)
