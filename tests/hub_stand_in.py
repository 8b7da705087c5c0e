"""A hub on this computer: as much of its HTTP interface as its library needs to push models, and to fetch them.

Datasets are fetched alike, under their names in ``Hub.branches``; their files are listed, found and read.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """Repositories by name: their branches and the files of every commit; and every request that was made."""

    url: str = ""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    private: dict[str, str | None] = field(default_factory=dict)  # the visibility that was asked for
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    large: str | None = None  # the ending of files that are uploaded apart from their commit, as the hub's LFS wants it
    is_full: bool = False  # and takes no such file any more
    uploads: dict[str, bytes] = field(default_factory=dict)  # by SHA-256

    def create(self, name: str) -> None:
        self.branches[name] = {}
        self.commit(name, "main", {".gitattributes": b""})

    def commit(self, name: str, branch: str, files: Files) -> str:
        text = json.dumps([name, len(self.commits), sorted(files)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.branches[name][branch], self.commits[sha] = sha, files
        return sha

    def sha(self, name: str, revision: str) -> str | None:
        return self.branches[name].get(revision, revision if revision in self.commits else None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, body: Any = None, data: bytes = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if body is not None else data
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._send(404, {"error": code}, X_Error_Code=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        words = [unquote(word) for word in path.strip("/").split("/")]
        if words[0] == "datasets":
            words = words[1:]
        if words[:2] in (["api", "models"], ["api", "datasets"]):
            name, verb, revision = "/".join(words[2:4]), (words[4:5] or ["revision"])[0], (words[5:6] or ["main"])[0]
        else:
            name, verb, revision = "/".join(words[:2]), words[2], words[3]
        if name not in self.hub.branches:
            return self._missing("RepoNotFound")
        sha = self.hub.sha(name, revision)
        if sha is None:
            return self._missing("RevisionNotFound")
        files = self.hub.commits[sha]
        if verb == "revision":
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            return self._send(200, {"id": name, "sha": sha, "siblings": siblings})
        if verb == "tree":
            listed = _tree(files, "/".join(words[6:]), "recursive=true" in self.path.lower())
            return self._send(200, listed) if listed else self._missing("EntryNotFound")
        file = "/".join(words[4:])
        if file not in files:
            return self._missing("EntryNotFound")
        etag = f'"{_entry(file, files[file])["oid"]}"'
        self._send(200, data=files[file], ETag=etag, X_Repo_Commit=sha, Content_Type="application/octet-stream")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _infos(self, name: str, revision: str, paths: list[str]) -> list[dict[str, Any]]:
        files = self.hub.commits[str(self.hub.sha(name, revision))]
        return [one for one in _tree(files, "", True) if one["path"] in paths]

    def do_PUT(self) -> None:
        data = self._body()
        if self.hub.is_full or hashlib.sha256(data).hexdigest() != self.path.removeprefix("/upload/"):
            return self._send(400, {"error": "not this file"})
        self.hub.uploads[hashlib.sha256(data).hexdigest()] = data
        self._send(200, {})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        data = self._body()
        words = [unquote(word) for word in path.strip("/").split("/")]
        if words[4:5] == ["paths-info"]:
            return self._send(200, self._infos("/".join(words[2:4]), words[5], parse_qs(data.decode())["paths"]))
        if self.headers.get("Authorization") != "Bearer right":
            return self._send(403, {"error": "this token may not write"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.create(name)
            self.hub.private[name] = asked.get("visibility")
            return self._send(200, {"url": f"{self.hub.url}/{name}"})
        if path.endswith("/lfs/objects/batch"):
            asked = json.loads(data)["objects"]
            objects = [one | {"actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}} for one in asked]
            return self._send(200, {"transfer": "basic", "objects": objects})
        name, verb, revision = "/".join(words[2:4]), words[4], words[5]
        branches = self.hub.branches[name]
        if verb == "branch":
            if revision in branches:
                return self._send(409, {"error": "there already"})
            branches[revision] = branches["main"]
            return self._send(200, {})
        if verb == "preupload":
            asked = json.loads(data)["files"]
            end = self.hub.large
            modes = [
                {"path": path, "uploadMode": "lfs" if end and path.endswith(end) else "regular", "shouldIgnore": False}
                for path in (one["path"] for one in asked)
            ]
            return self._send(200, {"files": modes})
        files = dict(self.hub.commits[branches[revision]])
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.uploads[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
            else:
                self.hub.messages.append(line["value"]["summary"])
        sha = self.hub.commit(name, revision, files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})


def _tree(files: Files, folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    """The files and folders of a folder, and those further down too."""
    start = f"{folder}/" if folder else ""
    inside = {file: data for file, data in files.items() if file.startswith(start)}
    folders = {str(parent) for file in inside for parent in PurePosixPath(file).parents} - {".", folder}
    entries = [_entry(file, data) for file, data in inside.items()]
    entries += [
        {"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders) if len(path) > len(start)
    ]
    return [one for one in entries if is_recursive or "/" not in one["path"].removeprefix(start)]


def _entry(file: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "path": file, "size": len(data), "oid": oid}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub without repositories, for the time of the block; the token "right" may write."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
