"""JSON documents and JSON lines: one reader, one writer, and the name of every format in one place."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from abmll.common.errors import AbmllError, CheckpointError
from abmll.common.files import write_text

Document = dict[str, Any]  # a JSON object as it is read and written

# A new number for every change that an older version could not read, or would read as something else.
FORMATS = {
    "checkpoint": "abmll-checkpoint-2",
    "posterior": "abmll-posterior-3",
    "calibration": "abmll-calibration-3",
    "classifier": "abmll-classifier-1",
    "evaluation": "abmll-evaluation-2",
    "cell": "abmll-cell-2",
    "comparison": "abmll-comparison-2",
    "settings": "abmll-settings-2",
    "trials": "abmll-trials-2",
    "bigbench": "abmll-bigbench-1",
    "export": "abmll-export-1",
    "vllm-ensemble": "abmll-vllm-ensemble-1",
}
_OLD = "checkpoint-1 posterior-2 readout-2 evaluation-1 cell-1 comparison-1 settings-1 trials-1"
OF_VERSION_0_1 = [f"abmll-{name}" for name in _OLD.split()]


def read_json(
    path: Path, kind: str | None, remedy: str, error: type[AbmllError] = CheckpointError, data: bytes | None = None
) -> Document:
    """The JSON object in a file, of the format of its ``kind`` (None: any object).

    Args:
        kind: a key of ``FORMATS``.
        remedy: what the user can do where the file cannot be used, the end of the error's line.
        error: the kind of error to raise.
        data: the file's bytes, where they have been read already.

    Raises ``error`` for a file that cannot be read, is no JSON object, or is of another format.
    """
    try:
        document = json.loads(path.read_bytes() if data is None else data)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); {remedy}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: is not valid JSON ({problem}); {remedy}") from problem
    found = document.get("format") if isinstance(document, dict) else None
    if found in OF_VERSION_0_1:
        raise error(f"{path}: was written by abmll 0.1, which this version does not read; {remedy}")
    if not isinstance(document, dict) or (kind is not None and found != FORMATS[kind]):
        wanted = "a JSON object" if kind is None else f"of the format '{FORMATS[kind]}'"
        raise error(f"{path}: is not {wanted}; {remedy}")
    return document


def read_json_lines(
    path: Path, remedy: str, error: type[AbmllError] = CheckpointError
) -> Iterator[tuple[int, Document]]:
    """The objects of a JSON-lines file with their line numbers from 1; nothing where the file is not there.

    A last line without its end was cut short by a killed process, and is left out; blank lines too. Raises ``error``
    naming file and line for any other line that is no JSON object.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise error(f"{path}:{number}: is not valid JSON ({problem}); {remedy}") from problem
        if not isinstance(row, dict):
            raise error(f"{path}:{number}: is {type(row).__name__}, not a JSON object; {remedy}")
        yield number, row


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as JSON lines. Raises ``ValueError`` for NaN and infinities, which JSON does not have."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows to a file, whole or not at all. Raises as ``json_lines`` and ``write_text``."""
    write_text(path, json_lines(rows))
