"""Two servers over one PostgreSQL and one folder: each answers what the other has learned, nothing is done twice."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete

from abmll import AbmllModel
from abmll.common.config import LearningConfig
from abmll.serving import peers
from abmll.serving.database import SERVERS, connect, writing
from abmll.serving.job_store import JobStore
from abmll.serving.limits import ServeConfig
from abmll.serving.task_changes import create
from abmll.serving.task_store import Labelled, TaskStore
from tests.serving.served import ASKED, PAIRS, ask, learn, rows, service_of, serving

ASYNC = {"Prefer": "respond-async"}
SECONDS = 60.0


@pytest.fixture(autouse=True)
def _quick(few_chains: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT", 0.05)


@pytest.fixture
def model(tiny_model: AbmllModel) -> AbmllModel:
    tiny_model.learning = LearningConfig(method="head")
    return tiny_model


@pytest.fixture
def start(model: AbmllModel, tmp_path: Path, shared_database: str) -> Iterator[Callable[..., TestClient]]:
    """start(): one more server, until the end of the test. Threads of one model take turns, so each has its own."""
    with ExitStack() as stack:

        def one_more(**limits: Any) -> TestClient:
            given = {"batch_window_ms": 0.0, **limits}
            return stack.enter_context(
                serving(model.on_twin(), tmp_path / "shared", ServeConfig(**given), shared_database)
            )

        yield one_more


def until(holds: Callable[[], Any]) -> Any:
    """Wait for what another thread does."""
    end = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def hold(client: TestClient) -> threading.Event:
    """Let the server's passes wait until the event is set."""
    go, engine = threading.Event(), service_of(client).engine
    inner = engine.readers["features"]

    def read(given: Any) -> Any:
        assert go.wait(SECONDS)
        return inner(given)

    engine.readers = {**engine.readers, "features": read}
    return go


@pytest.mark.parametrize("kept", [0, 1000])
def test_both_answer_what_either_has_learned(start: Callable[..., TestClient], kept: int) -> None:
    first, second = start(kept_answers=kept), start(kept_answers=kept)
    assert learn(first).status_code == 201
    bytes_of_first = ask(first).content
    assert ask(second).content == bytes_of_first
    changed = second.put("/v1/tasks/tickets/examples", json={"examples": rows([("aaa 99", "x"), ("b", "y")])})
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert first.get("/v1/tasks/tickets").json()["counts"] == {"x": 5, "y": 5}
    assert ask(first).content == ask(second).content
    assert ask(second, version=1).content == bytes_of_first
    assert learn(second).status_code == 409
    assert second.delete("/v1/tasks/tickets").status_code == 204
    for client in (first, second):
        assert ask(client).status_code == 404
        assert client.get("/v1/tasks").json()["tasks"] == []


def test_both_change_one_task_at_the_same_time(start: Callable[..., TestClient]) -> None:
    clients = [start(), start()]
    learn(clients[0])
    found: list[Any] = []

    def add(number: int) -> None:
        body = {"examples": rows([(f"aaa {number}", "x")])}
        found.append(clients[number % 2].put("/v1/tasks/tickets/examples", json=body, headers=ASYNC))

    threads = [threading.Thread(target=add, args=(20 + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {response.status_code for response in found} <= {200, 202}
    for client in clients:
        until(lambda client=client: client.get("/v1/tasks/tickets").json()["state"] == "ready")
        task = client.get("/v1/tasks/tickets").json()
        assert (task["version"], task["num_examples"]) == (5, len(PAIRS) + 4)
    assert ask(clients[0]).content == ask(clients[1]).content


def test_the_job_of_a_server_that_died_is_done_by_another(
    start: Callable[..., TestClient], shared_database: str
) -> None:
    client = start()
    engine = connect(shared_database)
    dead = TaskStore(engine, "", "dead")
    examples = [Labelled(text, label) for text, label in PAIRS]
    accepted = create(dead, "default", "left", "head", {"label_order": None, "steps": None}, examples)
    engine.dispose()
    until(lambda: client.get(f"/v1/jobs/{accepted.job}").json()["state"] == "done")
    assert [answer["label"] for answer in ask(client, ASKED[:2], "left").json()["answers"]] == ["x", "y"]


def test_the_job_of_a_server_that_lives_is_left_to_it(start: Callable[..., TestClient]) -> None:
    first, second = start(), start()
    learn(first)
    go = hold(first)
    body = {"examples": rows([("aaa 99", "x")])}
    key = {"Idempotency-Key": "one"}
    changed = first.put("/v1/tasks/tickets/examples", json=body, headers={**ASYNC, **key})
    job = changed.json()["id"]
    assert changed.status_code == 202
    again = second.put("/v1/tasks/tickets/examples", json=body, headers={**key, "Prefer": "wait=1"})
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (202, job, "waiting")
    assert service_of(second).jobs.live == {}
    assert second.get("/v1/tasks/tickets").json()["state"] == "updating"
    go.set()
    done = second.put("/v1/tasks/tickets/examples", json=body, headers=key)
    assert (done.status_code, done.json()["version"], done.json()["state"]) == (200, 2, "ready")
    assert first.get(f"/v1/jobs/{job}").json()["state"] == "done"


def test_a_job_is_cancelled_through_another_server(start: Callable[..., TestClient]) -> None:
    first, second = start(), start()
    learn(first)
    go = hold(first)
    job = first.post("/v1/tasks/tickets/relearn", headers=ASYNC).json()["id"]
    live = until(lambda: service_of(first).jobs.live.get(job))
    cancelled = second.delete(f"/v1/jobs/{job}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    until(live.cancelled.is_set)
    go.set()
    until(lambda: not service_of(first).jobs.live)
    assert first.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert second.delete(f"/v1/jobs/{job}").status_code == 409
    assert ask(second).json()["version"] == 1


def test_a_task_is_deleted_through_another_server_while_it_is_learned(
    start: Callable[..., TestClient], tmp_path: Path
) -> None:
    first, second = start(), start()
    go = hold(first)
    learn(first, "short", prefer="")  # an unknown field: refused, nothing is there
    first.post("/v1/tasks", json={"name": "tickets", "examples": rows(PAIRS)}, headers=ASYNC)
    until(lambda: service_of(first).jobs.live)
    assert second.delete("/v1/tasks/tickets").status_code == 204
    go.set()
    until(lambda: not service_of(first).jobs.live)
    assert first.get("/v1/tasks/tickets").status_code == 404
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == []


def test_a_server_that_was_thought_dead_spoils_nothing(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing while it learns, the other takes its job; then both come to an end."""
    first = start()
    learn(first)
    go = hold(first)
    job = first.post("/v1/tasks/tickets/relearn", headers=ASYNC).json()["id"]
    service = service_of(first)
    until(lambda: service.jobs.live)
    service.peers.ended.set()  # it beats no more
    assert service.peers.thread is not None
    service.peers.thread.join()
    with writing(service.store.engine, "") as db:
        db.execute(delete(SERVERS).where(SERVERS.c.id == service.server))
    second = start()
    until(lambda: second.get(f"/v1/jobs/{job}").json()["state"] == "done")
    learned = ask(second).content
    go.set()
    until(lambda: not service.jobs.live)
    assert ask(first).content == ask(second).content == learned
    assert second.get(f"/v1/jobs/{job}").json()["state"] == "done"
    row = service.store.version(service.store.task("default", "tickets"), 2)
    assert row.state == "ready"


def test_a_server_that_ends_leaves_its_jobs_to_the_others(
    model: AbmllModel, tmp_path: Path, shared_database: str, start: Callable[..., TestClient]
) -> None:
    staying = start()
    with serving(model.on_twin(), tmp_path / "shared", ServeConfig(), shared_database) as leaving:
        jobs = service_of(leaving).jobs
        for waiting in jobs.queues.values():
            waiting.put(None)  # its threads do nothing more
        for thread in jobs.threads:
            thread.join()
        job = leaving.post("/v1/tasks", json={"name": "t", "examples": rows(PAIRS)}, headers=ASYNC).json()["id"]
        time.sleep(0.2)
        assert JobStore(service_of(staying).store.engine, "", "nobody").take() == []
        assert staying.get(f"/v1/jobs/{job}").json()["state"] == "waiting"
    until(lambda: staying.get(f"/v1/jobs/{job}").json()["state"] == "done")
    assert len(ask(staying, ASKED, "t").json()["answers"]) == len(ASKED)
