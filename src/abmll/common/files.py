"""Files that are either whole or absent: write to a temporary sibling, flush it to the disk, rename it into place."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from abmll.common.errors import AbmllError
from abmll.common.locks import sole_writer

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a disk, a share of it, or a file
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def cache_dir() -> Path:
    """The user's cache: ``$ABMLL_CACHE``, else ``$XDG_CACHE_HOME/abmll``, else ``~/.cache/abmll``."""
    if own := os.environ.get("ABMLL_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "abmll"
    return Path.home() / ".cache" / "abmll"


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn an ``OSError`` of writing ``path`` into an ``AbmllError``: one line with path, cause and remedy."""
    try:
        yield
    except OSError as error:
        raise _explained(path, error) from error


def _explained(path: Path | str, error: OSError) -> AbmllError:
    if error.errno in FULL:
        remedy = "free some space or choose another folder"
    elif error.errno in _FORBIDDEN:
        remedy = "choose a folder you may write to"
    else:
        remedy = "check the path"
    return AbmllError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def temporary_sibling(path: Path) -> Path:
    """An unused hidden name in the folder of ``path``: only within one folder is a rename certain to be atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A new file to write to, which becomes ``path`` when the block ends well and vanishes when it does not.

    Its folder is created. Raises ``AbmllError`` (read-only or full disk).
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            remove(temporary)
        _sync(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically, creating its folder. Raises as ``atomic_file``."""
    data = text.encode("utf-8")
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically.

    Raises ``ValueError`` for NaN and infinities, which JSON does not have, before anything is written.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON. Raises ``ValueError`` for NaN and infinities, which JSON does not have."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def atomic_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Wherever its process is killed, the old folder or the new one is there after ``restore`` or the next call, whole.
    Raises ``AbmllError`` where another process is writing there.

    Args:
        path: the folder to create; an empty one may be there already.
        overwrite: replace what is there. Otherwise raises ``AbmllError``, before the block is entered.
    """
    path = _with_name(path)
    with ExitStack() as stack:
        with disk_errors(path):
            stack.enter_context(sole_writer(path))
        _restore(path)
        if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise AbmllError(f"{path} exists already; choose another folder, or overwrite it")
        temporary = temporary_sibling(path)
        stack.callback(_restore, path)
        with disk_errors(path):
            temporary.mkdir()
        try:
            yield temporary
        except OSError as error:
            if error.errno not in FULL | _FORBIDDEN:
                raise  # the block's own affair, such as a file that it reads and that is not there
            raise _explained(path, error) from error
        with disk_errors(path):
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            if path.exists():
                os.replace(path, _retired(path))
            os.replace(temporary, path)
            _sync(path.parent)


def restore(path: Path) -> None:
    """Put a folder back that ``atomic_folder`` was replacing when its process was killed.

    Nothing happens where there is none, or where the replacing goes on.
    """
    path = _with_name(path)
    if _retired(path).exists():
        with suppress(AbmllError, OSError), sole_writer(path):
            _restore(path)


def _with_name(path: Path | str) -> Path:
    """The path, as a whole one where it has no name of its own: "." and "..", beside which nothing can be named."""
    path = Path(path)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def _retired(path: Path) -> Path:
    """Where a folder lies while another takes its place."""
    return path.with_name(f".{path.name}.replaced")


def _restore(path: Path) -> None:
    """The same for who has the right to write there; what killed processes have left unfinished is deleted."""
    retired = _retired(path)
    with disk_errors(path):
        if retired.exists() and not path.exists():
            os.replace(retired, path)
        remove(retired)
        ours = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}\.tmp")  # and not those of NAME.v2
        for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if ours.fullmatch(unfinished.name):
                remove(unfinished)


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):  # the latter: below a file there can be none
            path.unlink()


def give_usual_modes(folder: Path) -> None:
    """Give the files of a folder the mode of new ones: some libraries write theirs for their owner alone."""
    probe = temporary_sibling(folder / "mode")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def read_regular(path: Path, limit: int, remedy: str, error: type[AbmllError]) -> bytes:
    """The bytes of a file. Raises ``error`` as ``open_regular`` does, and where it is longer than ``limit``."""
    with open_regular(path, remedy, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path}: has {size:,} bytes, more than the {limit:,} that it may; {remedy}")
        return file.read()


@contextmanager
def open_regular(path: Path, remedy: str, error: type[AbmllError]) -> Iterator[BinaryIO]:
    """A file to be read. Raises ``error``, with the ``remedy`` at its end, where it cannot be read, or is none of the
    regular files: a pipe or a device may never end.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise error(f"{path}: is not a regular file; {remedy}")
            yield file
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); {remedy}") from problem


def refuse_link_out(folder: Path, path: Path, remedy: str, error: type[AbmllError]) -> None:
    """Raise ``error`` for a link that leads out of the saved folder which ``path`` is in.

    The hub's cache consists of links: from below ``models--NAME/snapshots`` into ``models--NAME/blobs``, no further.
    """
    if not path.is_symlink():
        return
    inside, target = folder.resolve(), path.resolve()
    snapshots = [place for place in inside.parents if place.name == "snapshots"]
    blobs = [place.parent / "blobs" for place in snapshots if place.parent.name.startswith("models--")]
    if not any(target.is_relative_to(place) for place in (inside, *blobs)):
        raise error(f"{path}: is a link that leads out of its folder; {remedy}")


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
