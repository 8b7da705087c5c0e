"""One writer a folder: an advisory lock beside it, which says who holds it, and which dies with its process."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from abmll.common.errors import AbmllError


@contextmanager
def sole_writer(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Nobody else who asks likewise writes to ``folder`` inside of the block; a process may ask again inside.

    The lock is a hidden file beside the folder. The operating system frees it when its process ends, however it ends.
    Raises ``AbmllError`` that names the holder, after ``patience`` seconds of waiting.
    """
    path = lock_path(folder)
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    try:
        # A moment more: what was waited for may be the file of somebody who has just left.
        # Who waits long looks seldom, as many may wait for a file of another computer.
        lock.acquire(timeout=max(patience, 0.2), poll_interval=min(1.0, max(0.05, patience / 100)))
    except Timeout as error:
        raise AbmllError(
            f"{folder}: {_holder(path)} is writing there; wait until it is done, or choose another folder"
        ) from error
    try:
        if lock.lock_counter == 1:
            path.write_text(json.dumps(_self()), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):  # Windows deletes no open file; whoever waits sees that this one is gone
                path.unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # something was written there
                path.parent.rmdir()


def lock_path(folder: Path) -> Path:
    """Where the lock of a folder lies; the same for every way in which its path is written.

    Beside it, as a folder that is replaced cannot hold its own; in it, where nobody may write beside it.
    """
    whole = Path(os.path.abspath(folder))
    if whole.is_dir() and not os.access(whole.parent, os.W_OK):
        return whole.resolve() / ".lock"
    return whole.parent.resolve() / f".{whole.name}.lock"


def _self() -> dict[str, str | int]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.strftime("%H:%M:%S")}


def _holder(path: Path) -> str:
    """Who has written into the lock, as far as it can be read."""
    try:
        found = json.loads(path.read_bytes()[:10_000])
        return f"process {int(found['pid'])} on {found['host']} ({found['command']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
