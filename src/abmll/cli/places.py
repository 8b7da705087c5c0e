"""Where a verb writes, looked at before any work is done for it: nothing is lost, and nobody waits in vain."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from abmll.common.checkpoint import DOCUMENT, latest_checkpoint
from abmll.common.errors import ConfigError
from abmll.common.files import disk_errors
from abmll.common.locks import sole_writer
from abmll.model.run_folder import RunFolder

# The file by which a folder of each kind is known.
SIGNS = {
    "posterior": DOCUMENT,
    "peft export": "adapter_config.json",
    "merged export": "tokenizer_config.json",
    "vllm-ensemble export": "ensemble.json",
}


def check_file(path: Path, overwrite: bool) -> None:
    """Raise ``ConfigError`` where a file ``path`` cannot be written, or would replace another without leave."""
    _refuse_unwritable(path, file=True)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise _taken(path)


def check_folder(path: Path, overwrite: bool, kind: str | None = None) -> None:
    """Raise ``ConfigError`` where a folder ``path`` cannot be written, or holds something that may not be replaced.

    A ``kind`` says that the folder will be replaced as a whole: then even with leave it has to be of that kind.
    """
    _refuse_unwritable(path)
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise _taken(path)
    if kind and not (path / SIGNS[kind]).is_file():
        raise ConfigError(
            f"{path} holds other things than a {kind}, which --overwrite would delete; choose another place"
        )


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Nobody else works in ``folder`` meanwhile; an interrupt's text says how the work there goes on."""
    try:
        with sole_writer(folder):
            yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{folder}: run the same command to go on; what is finished is kept") from None


def check_run(path: Path, resume: bool, overwrite: bool) -> None:
    """Raise ``ConfigError`` where ``path`` cannot take a new run, ``CheckpointError`` where none can go on there."""
    _refuse_unwritable(path)
    if resume:
        latest_checkpoint(path)
    else:
        RunFolder(path).refuse_taken(overwrite)


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists already; choose another place or say --overwrite")


def _refuse_unwritable(path: Path, file: bool = False) -> None:
    with disk_errors(path):  # such as a name that is too long
        there = [place for place in (path, *path.parents) if place.exists()]
    nearest = path.parent if file and there[0] == path else there[0]
    if not nearest.is_dir():
        raise ConfigError(f"cannot write {path}: {nearest} is a file, not a folder; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {path}: {nearest} is read-only; choose a folder you may write to")
