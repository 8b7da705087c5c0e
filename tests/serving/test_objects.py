"""Files of a store: in a folder, or wherever fsspec reaches; whole or not there, and told from damaged ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from abmll import AbmllModel
from abmll.common.config import LearningConfig
from abmll.common.errors import AbmllError, CheckpointError
from abmll.serving.limits import ServeConfig
from abmll.serving.objects import Objects
from abmll.serving.service import Service
from tests.serving.served import PAIRS


@pytest.fixture(params=["folder", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place of each kind, with nothing in it."""
    yield {"folder": str(tmp_path / "a b"), "file": f"file://{tmp_path}/files", "memory": "memory://posteriors"}[
        request.param
    ]
    fsspec.filesystem("memory").store.clear()


def test_files_are_kept_by_name(place: str) -> None:
    objects = Objects(place)
    assert objects.get("0/1/1.bin") is None
    for data in (b"first", b"", b"another"):
        objects.put("0/1/1.bin", data)
        assert Objects(place).get("0/1/1.bin") == data
    objects.put("0/1/2.bin", b"two")
    objects.put("0/11/1.bin", b"other task")
    assert (sorted(objects.names("0/1")), objects.names("0/2")) == (["1.bin", "2.bin"], [])
    objects.delete("0/1/2.bin")
    assert objects.get("0/1/2.bin") is None
    objects.delete("0/1")
    objects.delete("0/1")
    assert (objects.get("0/1/1.bin"), objects.get("0/11/1.bin")) == (None, b"other task")


def test_a_file_that_is_not_written_whole_is_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Objects(str(tmp_path))
    objects.put("0/1.bin", b"old")

    def refuse(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises(AbmllError, match="free some space"):
            objects.put("0/1.bin", b"new")
    assert objects.get("0/1.bin") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.bin"]


def test_what_a_store_of_objects_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Objects("memory://posteriors")

    def refuse(*paths: Any, **more: Any) -> None:
        raise PermissionError(13, "Forbidden")

    for name in ("pipe_file", "cat_file", "rm"):
        monkeypatch.setattr(type(objects.system), name, refuse)
    with pytest.raises(AbmllError, match=r"^cannot write memory://posteriors/x: Forbidden; choose a folder"):
        objects.put("x", b"")
    with pytest.raises(AbmllError, match="Forbidden"):
        objects.delete("x")
    with pytest.raises(CheckpointError, match="Forbidden"):
        objects.get("x")


@pytest.mark.parametrize("place", ["nosuch://bucket/folder", "s3://bucket/folder"])
def test_a_place_that_is_not_known_here(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(AbmllError, match="files cannot be kept there"):
        Objects(place)


def test_a_service_keeps_its_posteriors_there(
    few_chains: None, tiny_model: AbmllModel, tmp_path: Path, place: str
) -> None:
    from fastapi.testclient import TestClient

    from abmll.serving.app import make_app
    from tests.serving.served import ask, learn

    tiny_model.learning = LearningConfig(method="head")
    texts = [text for text, _ in PAIRS]

    def served() -> TestClient:
        limits = ServeConfig(batch_window_ms=0.0, kept_answers=0)
        service = Service(tiny_model, f"sqlite:///{tmp_path / 'store.sqlite'}", place, limits)
        return TestClient(make_app(service), base_url="http://127.0.0.1")

    with served() as client:
        assert learn(client).status_code == 201
        answered = ask(client, texts).content
    objects = Objects(place)
    name = "0/1/1.posterior.safetensors"
    kept = objects.get(name)
    assert kept is not None
    with served() as client:
        assert ask(client, texts).content == answered
    objects.put(name, kept[:-1])
    with served() as client:
        refused = ask(client, texts)
        assert refused.status_code == 503
        assert "relearn" in refused.json()["detail"]
        assert client.get("/v1/tasks/tickets").json()["state"] == "damaged"
        assert client.post("/v1/tasks/tickets/relearn").status_code == 200
        assert ask(client, texts).json()["version"] == 2
        client.delete("/v1/tasks/tickets")
    assert [objects.get(name), objects.get(name.replace("/1.", "/2."))] == [None, None]
