"""Fetching from a package index: a small server on the loopback."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from abmll.common import download
from abmll.common.download import IndexFile, fetch_from_index
from abmll.common.errors import AbmllError

DATA = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "some_tasks-1.0.tar.gz"
HTML = (
    f'<html><a href="../other-2.0.tar.gz">other-2.0.tar.gz</a><a href="../../files/{NAME}#sha256=0">{NAME}</a></html>'
)


class Index(BaseHTTPRequestHandler):
    """Answers with the server's ``pages``: {path: bytes}; notes the headers of each request."""

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))  # type: ignore[attr-defined] (the fixture sets it)
        body = self.server.pages.get(self.path)  # type: ignore[attr-defined] (the fixture sets it)
        self.send_response(404 if body is None else 200)
        promised = self.server.promised.get(self.path, len(body or b""))  # type: ignore[attr-defined] (the fixture sets it)
        self.send_header("Content-Length", str(promised))
        if body and body.startswith(b"{"):
            self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running index on the loopback; PIP_INDEX_URL points at it, without any proxy."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.pages = {"/simple/some-tasks/": HTML.encode(), f"/files/{NAME}": DATA}
    server.promised, server.requests = {}, []
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(destination: Path, sha256: str = SHA256, size: int = len(DATA)) -> list[str]:
    told: list[str] = []
    fetch_from_index(IndexFile("Some.Tasks", NAME, sha256, size), destination, told.append, quiet=True)
    return told


def test_from_an_html_page(index: Any, tmp_path: Path) -> None:
    told = fetch(tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    (line,) = told
    assert all(part in line for part in (NAME, "Some.Tasks", "0.8 MB", f"127.0.0.1:{index.server_port}"))


def test_from_a_json_page(index: Any, tmp_path: Path) -> None:
    page = {
        "meta": {"api-version": "1.0"},
        "name": "some-tasks",
        "files": [{"filename": NAME, "url": f"/files/{NAME}", "hashes": {}}],
    }
    index.pages["/simple/some-tasks/"] = json.dumps(page).encode()
    fetch(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_login_is_used_and_never_told(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"127.0.0.1:{index.server_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:p%40ss@{host}")
    (line,) = fetch(tmp_path / "file")
    assert [request["Authorization"] for request in index.requests] == ["Basic dXNlcjpwQHNz"] * 2
    assert "user" not in line
    del index.pages["/simple/some-tasks/"]
    with pytest.raises(AbmllError, match="No details about project") as caught:
        fetch(tmp_path / "file")
    assert "user" not in str(caught.value)


def test_a_login_goes_to_the_index_alone(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:pass@127.0.0.1:{index.server_port}/simple")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    elsewhere = f"http://localhost:{index.server_port}/files/{NAME}"
    index.pages["/simple/some-tasks/"] = f'<a href="{elsewhere}">{NAME}</a>'.encode()
    fetch(tmp_path / "file")
    assert ["Authorization" in request for request in index.requests] == [True, False]


@pytest.mark.parametrize("where", ["file:///nowhere/simple", "nonsense"])
def test_an_address_that_is_no_server(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", where)
    with pytest.raises(AbmllError, match=re.escape(f"cannot fetch {NAME} from {where}")):
        fetch(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, f"SHA-256 is {SHA256}, expected 0000"),
        ({"size": len(DATA) + 1}, f"received {len(DATA)} of {len(DATA) + 1} bytes"),
        ({"size": len(DATA) - 1}, f"received more than {len(DATA) - 1} bytes"),
        ({"size": 10**18}, "needs 1000000000000.0 MB in"),
    ],
)
def test_the_wrong_file_leaves_nothing(changes: dict[str, Any], message: str, index: Any, tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match=message):
        fetch(tmp_path / "file", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"<html></html>", f"it has no file {NAME} of 'Some.Tasks'; "),
        (b'{"meta": {"api-version": "1.0"}, "name": "some-tasks", "files": []}', "it has no file"),
        (b'{"files": 3}', "cannot fetch"),
        (b"{broken", "cannot fetch"),
    ],
)
def test_a_page_without_the_file(page: bytes, message: str, index: Any, tmp_path: Path) -> None:
    index.pages["/simple/some-tasks/"] = page
    with pytest.raises(AbmllError, match=message) as caught:
        fetch(tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("set PIP_INDEX_URL to an index that can be reached and has the file")


def test_a_missing_file_and_a_broken_connection(index: Any, tmp_path: Path) -> None:
    index.promised[f"/files/{NAME}"] = len(DATA) + 5
    with pytest.raises(AbmllError, match=r"IncompleteRead|received"):
        fetch(tmp_path / "file", size=len(DATA) + 5)
    del index.pages[f"/files/{NAME}"]
    with pytest.raises(AbmllError, match="404"):
        fetch(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_no_network(index: Any, tmp_path: Path) -> None:
    index.shutdown()
    index.server_close()
    with pytest.raises(AbmllError, match=r"cannot fetch .*: .*; check the network, or set PIP_INDEX_URL"):
        fetch(tmp_path / "file")


def test_a_silent_server(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.shutdown()  # accepts connections, answers nothing
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(AbmllError, match="timed out"):
        fetch(tmp_path / "file")
