"""What a disk or a memory refuses is told, nothing is half done, and it works again when there is space."""

import errno
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from abmll import AbmllModel
from abmll.serving.resident import Row
from tests.serving.survival import Served, example, load, new, rows, served, together

pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> AbmllModel:
    return load(tiny_llama)


@pytest.fixture
def server(model: AbmllModel, tmp_path: Path) -> Iterator[Served]:
    """A server that has learned task ``a``."""
    with served(model, tmp_path / "store") as found:
        assert found.client.post("/v1/tasks", json=new("a")).status_code == 201
        yield found


def ask(server: Served, name: str, text: str = "who is it", **more: Any) -> Any:
    return server.client.post(f"/v1/tasks/{name}/predict", json={"texts": [text], **more})


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of posteriors find no space; the database does."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def no_file_grows() -> Iterator[None]:
    """Not a byte can be added to any file of this process: neither to the database nor to posteriors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def problem(response: Any) -> tuple[int, str]:
    document = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert document["status"] == response.status_code
    assert "\n" not in document["detail"]
    assert "/" not in document["detail"].replace("POST .../relearn", "")  # it tells no paths of the server's
    return response.status_code, document["detail"]


def test_no_space_for_a_posterior(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = server.client.get("/v1/tasks/a").json()
    with full_disk(monkeypatch):
        status, detail = problem(server.client.put("/v1/tasks/a/examples", json={"examples": rows(2, 10)}))
        assert status == 507
        assert "disk is full" in detail
        assert problem(server.client.post("/v1/tasks", json=new("b")))[0] == 507
        assert ask(server, "a").json()["version"] == before["version"]
    assert list(Path(server.service.files.objects.root).rglob("*.tmp")) == []
    again = server.client.put("/v1/tasks/a/examples", json={"examples": rows(2, 10)})
    assert again.status_code == 200
    assert (again.json()["state"], again.json()["num_examples"]) == ("ready", 8)
    assert again.json()["version"] == before["version"] + 1
    assert ask(server, "a").json()["version"] == before["version"] + 1
    assert server.client.get("/v1/tasks/b").json()["state"] == "failed"
    assert problem(ask(server, "b"))[0] == 404
    assert server.client.post("/v1/tasks/b/relearn").status_code == 200
    assert ask(server, "b").status_code == 200


def test_no_space_for_a_posterior_and_the_same_key_again(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Idempotency-Key": "once"}
    with full_disk(monkeypatch):
        assert problem(server.client.post("/v1/tasks", json=new("b"), headers=headers))[0] == 507
    assert server.client.post("/v1/tasks", json=new("b"), headers=headers).status_code == 201
    assert ask(server, "b").status_code == 200


def test_a_database_that_cannot_grow(server: Served) -> None:
    first = ask(server, "a")
    with no_file_grows():
        for _ in range(3):
            status, detail = problem(server.client.post("/v1/tasks", json=new("b")))
            assert status == 507
            assert "disk is full" in detail
        assert problem(server.client.put("/v1/tasks/a/examples", json={"examples": rows(2, 10)}))[0] == 507
        assert problem(server.client.delete("/v1/tasks/a"))[0] == 507
        assert ask(server, "a").content == first.content
        assert ask(server, "a", "what was never asked").status_code == 200
    assert [task["name"] for task in server.client.get("/v1/tasks").json()["tasks"]] == ["a"]
    assert server.client.get("/v1/tasks/a").json()["num_examples"] == 6
    assert server.client.post("/v1/tasks", json=new("b")).status_code == 201


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": replace_by_a_folder,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_posterior(kind: str, model: AbmllModel, tmp_path: Path) -> None:
    with served(model, tmp_path / "store") as server:
        for name in "ab":
            server.client.post("/v1/tasks", json=new(name))
        answers = {name: ask(server, name).content for name in "ab"}
    [path] = (tmp_path / "store").rglob("1/1.posterior.safetensors")
    DAMAGES[kind](path)
    with served(model, tmp_path / "store") as server:
        assert ask(server, "b").content == answers["b"]
        assert ask(server, "a").content == answers["a"]  # it was given before
        for _ in range(2):
            status, detail = problem(ask(server, "a", "another"))
            assert (status, "relearn" in detail) == (503, True)
        damaged = server.client.get("/v1/tasks/a").json()
        assert damaged["state"] == "damaged"
        assert "relearn" in damaged["error"]
        assert server.client.get("/v1/tasks/b").json()["state"] == "ready"
        assert ask(server, "b", "another").status_code == 200
        assert problem(server.client.post("/v1/tasks/a/export", json={}))[0] == 503
        mended = server.client.post("/v1/tasks/a/relearn")
        assert (mended.status_code, mended.json()["state"], mended.json()["version"]) == (200, "ready", 2)
        assert ask(server, "a", "another").status_code == 200


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_fit_is_made_anew(kind: str, model: AbmllModel, tmp_path: Path) -> None:
    with served(model, tmp_path / "store") as server:
        server.client.post("/v1/tasks", json=new("a"))
        ask(server, "a")
        quality = server.client.get("/v1/tasks/a/quality").json()
    [path] = (tmp_path / "store").rglob("1/1.fitted.safetensors")
    DAMAGES[kind](path)
    with served(model, tmp_path / "store") as server:
        assert ask(server, "a", "another").status_code == 200
        assert server.client.get("/v1/tasks/a").json()["state"] == "ready"
        assert server.client.get("/v1/tasks/a/quality").json() == quality


def test_memory_that_is_short_for_one_request(model: AbmllModel, tmp_path: Path) -> None:
    with served(model, tmp_path / "store", batch_window_ms=300.0) as server:
        server.client.post("/v1/tasks", json=new("a"))
        ask(server, "a")
        read, shared = server.service.engine.readers["features"], []

        def reader(rows: Sequence[Row]) -> Sequence[Any]:
            shared.append(len(rows))
            if max(map(len, rows)) > longest:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return read(rows)

        longest = len(server.service.resident.encode([example("short 0")], "a")[0]) + 20
        server.service.engine.readers = {"features": reader}
        found = together(server, ["short 0", "long " * 40, "short 1", "short 2"])
        assert [one.status_code for one in found] == [200, 503, 200, 200]
        assert "not enough memory" in problem(found[1])[1]
        assert max(shared) > 1  # they were in one pass first
        status, detail = problem(
            server.client.put("/v1/tasks/a/examples", json={"examples": [{"text": "long " * 40, "label": "bug"}]})
        )
        assert (status, "not enough memory" in detail) == (503, True)
        assert server.client.get("/v1/tasks/a").json()["state"] == "ready"


def test_a_defect_in_one_requests_rows(model: AbmllModel, tmp_path: Path) -> None:
    with served(model, tmp_path / "store", batch_window_ms=300.0) as server:
        server.client.post("/v1/tasks", json=new("a"))
        ask(server, "a")
        read = server.service.engine.readers["features"]

        def reader(rows: Sequence[Row]) -> Sequence[Any]:
            if any(len(row) > longest for row in rows):
                raise KeyError("a defect with the secret text")
            return read(rows)

        longest = len(server.service.resident.encode([example("short 0")], "a")[0]) + 20
        server.service.engine.readers = {"features": reader}
        found = together(server, ["short 0", "long " * 40, "short 1"])
        assert [one.status_code for one in found] == [200, 500, 200]
        assert "secret" not in found[1].text
        assert ask(server, "a", "short 3").status_code == 200
        assert server.client.get("/readyz").status_code == 200
