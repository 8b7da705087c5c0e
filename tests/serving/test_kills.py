"""A server that is killed at any moment has lost nothing that it had said was done, and does what it had accepted."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
from abmll.serving.objects import Objects
from abmll.serving.teacher import Teacher
from tests.serving.survival import LABELS, SECONDS, Process, load, new, passes, rows, served

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = 20 if os.environ.get("ABMLL_FUZZ") else 4
SEED = int(os.environ.get("ABMLL_SEED") or 0)


@dataclass
class Asker:
    """Asks a server for one thing after the other, and remembers what it was told."""

    rng: random.Random
    tasks: dict[str, dict[str, str]] = field(default_factory=dict)  # examples of each, as they were acknowledged
    answers: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)  # jobs
    unsure: tuple[str, str, dict[str, Any], str] | None = None  # what was asked for when the server was killed
    number: int = 0

    def ask(self, url: str, is_over: Callable[[], bool]) -> None:
        """Ask until the server is gone, or it is over."""
        with httpx.Client(base_url=url, timeout=SECONDS) as client:
            while not is_over():
                act = self.rng.choice([self._create, self._add, self._add, self._predict, self._predict])
                try:
                    act(client) if self.tasks else self._create(client)
                except httpx.TransportError:
                    return

    def repeat(self, url: str) -> None:
        """Ask once more for what was being asked for, under the same key."""
        if self.unsure is not None:
            with httpx.Client(base_url=url, timeout=SECONDS) as client:
                self._change(client, *self.unsure)

    def check(self, url: str) -> None:
        """All that was told is so still."""
        with httpx.Client(base_url=url, timeout=SECONDS) as client:
            until = time.monotonic() + SECONDS
            while any(task["job"] for task in client.get("/v1/tasks?limit=1000").json()["tasks"]):
                assert time.monotonic() < until, "jobs are not done"
                time.sleep(0.02)
            found = {task["name"]: task for task in client.get("/v1/tasks?limit=1000").json()["tasks"]}
            assert set(found) == set(self.tasks)
            for name, examples in self.tasks.items():
                task = found[name]
                assert (task["state"], task["error"], task["num_examples"]) == ("ready", None, len(examples))
                listed = client.get(f"/v1/tasks/{name}/examples").json()["examples"]
                assert {one["text"]: one["label"] for one in listed} == examples
                versions = client.get(f"/v1/tasks/{name}/versions").json()["versions"]
                assert [one["version"] for one in versions] == list(range(task["version"], 0, -1))
                assert {one["state"] for one in versions} == {"ready"}
            for job in self.accepted:
                assert client.get(f"/v1/jobs/{job}").json()["state"] == "done"
            for path, body, text in self.answers:
                assert client.post(path, json=body).text == text

    def _create(self, client: httpx.Client) -> None:
        self.number += 1
        self._change(client, "POST", "/v1/tasks", new(f"task{self.number}", 4), f"key{self.number}")

    def _add(self, client: httpx.Client) -> None:
        self.number += 1
        name = self.rng.choice(sorted(self.tasks))
        more = [{"text": f"more {self.number} {n}", "label": self.rng.choice(LABELS)} for n in range(2)]
        self._change(client, "PUT", f"/v1/tasks/{name}/examples", {"examples": more}, f"key{self.number}")

    def _predict(self, client: httpx.Client) -> None:
        name = self.rng.choice(sorted(self.tasks))
        asked = {"texts": [f"new {self.rng.randrange(20)}"]}
        found = client.post(f"/v1/tasks/{name}/predict", json=asked)
        if found.status_code == 404 and self.accepted:  # it was accepted, and is not learned yet
            return
        assert found.status_code == 200, found.text
        version = found.json()["version"]
        self.answers.append((f"/v1/tasks/{name}/predict", {**asked, "version": version}, found.text))

    def _change(self, client: httpx.Client, method: str, path: str, body: dict[str, Any], key: str) -> None:
        self.unsure = method, path, body, key
        headers = {"Idempotency-Key": key}
        if self.rng.random() < 0.3:
            headers["Prefer"] = "respond-async"
        found = client.request(method, path, json=body, headers=headers)
        assert found.status_code in (200, 201, 202), found.text
        if found.status_code == 202:
            self.accepted.append(found.json()["id"])
        name = body.get("name") or path.split("/")[3]
        self.tasks.setdefault(name, {}).update({one["text"]: one["label"] for one in body["examples"]})
        self.unsure = None


def test_kills(tiny_llama: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    asker = Asker(rng)
    process = Process(tiny_llama, tmp_path / "store")
    try:
        process.wait_ready()
        for _ in range(KILLS):
            thread = threading.Thread(target=asker.ask, args=(process.url, lambda: False))
            thread.start()
            time.sleep(rng.uniform(0.1, 2.0))
            process.kill()
            thread.join()
            process = Process(tiny_llama, tmp_path / "store")
            process.wait_ready()
            asker.repeat(process.url)
            asker.check(process.url)
    finally:
        process.kill()
    assert len(asker.tasks) >= 1
    assert asker.answers
    left = list((tmp_path / "store").rglob("*.tmp"))  # at most what was being written at each kill
    assert len(left) <= 2 * KILLS
    for path in left:  # a later save deletes it
        os.utime(path, (0, 0))
    objects = Objects(str(tmp_path / "store" / "posteriors"))
    for path in left:
        objects.put(str(path.parent.relative_to(objects.root) / "next"), b"")
    assert list((tmp_path / "store").rglob("*.tmp")) == []


def test_a_server_that_is_told_to_end_leaves_its_jobs_for_the_next_start(tiny_llama: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = Process(tiny_llama, store)
    try:
        process.wait_ready()
        jobs = []
        for n in range(4):
            headers = {"Prefer": "respond-async"}
            found = httpx.post(f"{process.url}/v1/tasks", json=new(f"task{n}", 20), headers=headers, timeout=SECONDS)
            jobs.append(found.json()["id"])
        assert process.end() in (0, -signal.SIGTERM)
        assert "Traceback" not in process.log.read_text()
        process = Process(tiny_llama, store)
        process.wait_ready()
        asker = Asker(random.Random(), accepted=jobs)
        asker.tasks = {f"task{n}": {one["text"]: one["label"] for one in rows(20)} for n in range(4)}
        asker.check(process.url)
    finally:
        process.kill()


def test_two_servers_on_one_folder(tiny_llama: Path, tmp_path: Path) -> None:
    first = Process(tiny_llama, tmp_path / "store")
    try:
        first.wait_ready()
        said = first.log.read_text()
        second = Process(tiny_llama, tmp_path / "store")
        second.process.join(SECONDS)
        assert second.process.exitcode == 2
        [line] = second.log.read_text().removeprefix(said).splitlines()
        assert line.startswith(f"abmll: error: {tmp_path / 'store'}: ")
        assert f"process {first.process.pid}" in line
        assert httpx.get(f"{first.url}/readyz").status_code == 200
    finally:
        first.kill()


def test_a_restart_reads_and_fits_nothing(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_llama)
    with served(model, tmp_path / "store") as (service, client):
        assert client.post("/v1/tasks", json=new("a")).status_code == 201
        client.post("/v1/tasks/a/predict", json={"texts": ["fits it"]})
        answer = client.post("/v1/tasks/a/predict", json={"texts": ["before"]}).content
    monkeypatch.setattr(Teacher, "_fitted", lambda *_: pytest.fail("was fitted again"))
    with served(model, tmp_path / "store") as (service, client):
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/tasks/a/predict", json={"texts": ["before"]}).content == answer
        assert passes(service) == 0
        assert client.post("/v1/tasks/a/predict", json={"texts": ["another"]}).status_code == 200
        assert passes(service) == 1
