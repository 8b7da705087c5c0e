"""JSON documents and JSON lines: one reader, one writer, and the name of every format in one place.

A document is refused unless it is a regular file of its format, strict JSON, as its schema says (``schemas.py``), and
as it was written: ``sha256`` in it is the hash of all its other keys.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from abmll.common.errors import AbmllError, CheckpointError
from abmll.common.files import json_text, open_regular, read_regular, refuse_link_out, write_text
from abmll.common.schemas import problem_of
from abmll.common.strict_json import parse_json

Document = dict[str, Any]  # a JSON object as it is read and written

# A new number for every change that an older version could not read, or would read as something else.
FORMATS = {
    "checkpoint": "abmll-checkpoint-2",
    "posterior": "abmll-posterior-4",
    "calibration": "abmll-calibration-3",
    "best": "abmll-best-1",
    "classifier": "abmll-classifier-1",
    "evaluation": "abmll-evaluation-2",
    "written evaluation": "abmll-written-evaluation-1",
    "cell": "abmll-cell-2",
    "comparison": "abmll-comparison-2",
    "settings": "abmll-settings-2",
    "trials": "abmll-trials-2",
    "bigbench": "abmll-bigbench-1",
    "collection": "abmll-collection-1",
    "export": "abmll-export-1",
    "size": "abmll-size-1",
    "peak": "abmll-peak-1",
    "fingerprint": "abmll-fingerprint-2",
    "vllm-ensemble": "abmll-vllm-ensemble-1",
}
# What an older version wrote, which is read as well: all that it lacks has a default.
READ_AS_WELL = {"posterior": ("abmll-posterior-3",)}
PLAIN = ("manifest", "converted", None)  # kinds that name no format
SEAL = "sha256"
MAX_BYTES = 256 << 20
MAX_LINE_BYTES = 64 << 20
_OLD = "checkpoint-1 posterior-2 readout-2 evaluation-1 cell-1 comparison-1 settings-1 trials-1"
OF_VERSION_0_1 = [f"abmll-{name}" for name in _OLD.split()]


def read_json(
    path: Path, kind: str | None, remedy: str, error: type[AbmllError] = CheckpointError, data: bytes | None = None
) -> Document:
    """The document in a file.

    Args:
        kind: a key of ``SCHEMAS``; None: any object, of which nothing more is known.
        remedy: what the user can do where the file cannot be used, the end of the error's line.
        error: the kind of error to raise.
        data: the file's bytes, where they have been read already.

    Raises ``error`` for a file that cannot be read, is a link out of its folder, is no strict JSON object, is of
    another format, has been changed since it was written, or does not hold what its kind has to.
    """
    if data is None:
        refuse_link_out(path.parent, path, remedy, error)
        data = read_regular(path, MAX_BYTES, remedy, error)
    try:
        document = parse_json(data)
    except ValueError as problem:
        raise error(f"{path}: is not valid JSON ({problem}); {remedy}") from problem
    found = document.get("format") if isinstance(document, dict) else None
    if found in OF_VERSION_0_1:
        raise error(f"{path}: was written by abmll 0.1, which this version does not read; {remedy}")
    if not isinstance(document, dict) or (
        kind not in PLAIN and found not in (FORMATS[kind], *READ_AS_WELL.get(kind, ()))
    ):
        wanted = "a JSON object" if kind in PLAIN else f"of the format '{FORMATS[kind]}'"
        raise error(f"{path}: is not {wanted}; {remedy}")
    if kind is not None and (problem := problem_of(kind, data)):
        raise error(f"{path}: is damaged ({problem}); {remedy}")
    if kind not in PLAIN and SEAL in document and document[SEAL] != _seal(document):
        raise error(f"{path}: does not match its {SEAL}, so it was changed after it was written; {remedy}")
    return {key: value for key, value in document.items() if kind in PLAIN or key != SEAL}


def is_of(path: Path, kind: str) -> bool:
    """Whether there is a document in that place, and it is not plainly one of another kind."""
    others = {FORMATS[other] for other in FORMATS if other != kind}
    try:
        found = parse_json(read_regular(path, MAX_BYTES, "", AbmllError)) if path.exists() else None
    except (AbmllError, ValueError):  # its reader says what is wrong with it
        return True
    return found is not None and not (isinstance(found, dict) and found.get("format") in others)


def write_document(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write a document that lies by itself, with its format and seal. Raises as ``document_text``."""
    write_text(path, document_text(kind, content))


def document_text(kind: str, content: Mapping[str, Any]) -> str:
    """The text of a document that lies by itself. Raises ``AbmllError`` for one that could not be read again."""
    document = {"format": FORMATS[kind], **content}
    text = json_text(document | {SEAL: _seal(document)})
    refuse_unreadable(kind, text)
    return text


def refuse_unreadable(kind: str, text: str) -> None:
    """Raise ``AbmllError`` for a document that its reader would refuse."""
    if problem := problem_of(kind, text.encode()):
        raise AbmllError(f"{kind}: cannot be saved, as it could not be read again ({problem})")


def _seal(document: Document) -> str:
    """The SHA-256 of all keys but the seal's own, the same for every order of keys."""
    rest = {key: value for key, value in document.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json_lines(
    path: Path, remedy: str, error: type[AbmllError] = CheckpointError
) -> Iterator[tuple[int, Document]]:
    """The objects of a JSON-lines file with their line numbers from 1; nothing where the file is not there.

    A last line without its end was cut short by a killed process, and is left out; blank lines too. Raises ``error``
    naming file and line for any other line that is no JSON object, and for what is no regular file of the folder.
    """
    if not path.exists():
        return
    refuse_link_out(path.parent, path, remedy, error)
    for number, line in enumerate(_whole_lines(path, remedy, error), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as problem:
            raise error(f"{path}:{number}: is not valid JSON ({problem}); {remedy}") from problem
        if not isinstance(row, dict):
            raise error(f"{path}:{number}: is {type(row).__name__}, not a JSON object; {remedy}")
        yield number, row


def _whole_lines(path: Path, remedy: str, error: type[AbmllError]) -> Iterator[bytes]:
    """The lines that have an end, in memory that one of them bounds."""
    with open_regular(path, remedy, error) as file:
        number = 0
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            number += 1
            yield line
        if len(line) == MAX_LINE_BYTES:
            raise error(f"{path}:{number + 1}: line longer than {MAX_LINE_BYTES >> 20} MiB; {remedy}")


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as JSON lines. Raises ``ValueError`` for NaN and infinities, which JSON does not have."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows to a file, whole or not at all. Raises as ``json_lines`` and ``write_text``."""
    write_text(path, json_lines(rows))
