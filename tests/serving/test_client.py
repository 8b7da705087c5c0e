"""The client against a stand-in for the server: what it asks, what it makes of answers, when it asks again."""

import json
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from abmll import Client
from abmll.common.errors import AbmllError, ConfigError, DataError
from abmll.serving import client as module
from abmll.serving import connection
from abmll.serving.access import Tokens, read_tokens
from abmll.serving.connection import Refused
from abmll.serving.doors import guard
from abmll.serving.limits import ServeConfig
from abmll.serving.problems import Problem, install
from abmll.serving.replies import Answer, Job, Quality, StoredExample

TOKEN = "t" * 32
QUALITY = {"accuracy": 0.8, "nll": 0.4, "ece": 0.06, "num_examples": 12}


def task(name: str, **change: Any) -> dict[str, Any]:
    found = {"name": name, "state": "ready", "how": "head", "version": 3, "labels": ["a", "b"], "num_examples": 2}
    found |= {"counts": {"a": 1, "b": 1}, "label_order": None, "created": "2026-11-29T11:22:33Z", "error": None}
    return found | {"updated": "2026-11-29T11:22:33Z", "quality": None, "job": None, "of_a_newer_server": 1} | change


def job(**change: Any) -> dict[str, Any]:
    found = {"id": "7", "task": "tickets", "kind": "learn", "state": "running", "done": 1, "total": 2, "error": None}
    return found | {"version": None} | change


class StandIn:
    """Answers what it is told to, in order, then a task; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any, dict[str, str]]] = []
        self.answers: list[Any] = []

    def app(self, tokens: Tokens) -> FastAPI:
        app = FastAPI()
        install(app)

        @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
        async def answer(path: str, request: Request) -> Response:
            body = await request.body()
            target = path + f"?{request.url.query}" * bool(request.url.query)
            self.asked.append((request.method, target, json.loads(body) if body else None, dict(request.headers)))
            found = self.answers.pop(0) if self.answers else task("tickets")
            if isinstance(found, Problem):
                raise found
            return found if isinstance(found, Response) else JSONResponse(found)

        guard(app, ServeConfig(max_body_mb=0.1), "127.0.0.1", tokens)
        return app


@pytest.fixture(scope="module")
def running(listen: Callable[[Any], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[StandIn, str]:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(TOKEN)
    path.chmod(0o600)
    stand_in = StandIn()
    return stand_in, listen(stand_in.app(read_tokens(path)))


@pytest.fixture
def server(running: tuple[StandIn, str], monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(connection, "BACKOFF", 0.001)
    monkeypatch.setattr(module, "BETWEEN_LOOKS", 0.001)
    running[0].asked.clear()
    running[0].answers.clear()
    return running[0]


@pytest.fixture(params=["httpx", "httpx2"])
def client(running: tuple[StandIn, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip(request.param)
    monkeypatch.setattr(connection, "_http_library", lambda: library)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # leads nowhere, and not to this computer
    with Client(running[1] + "/", TOKEN) as client:
        yield client


def test_learning_and_adding(client: Client, server: StandIn) -> None:
    found = client.learn("tickets", [("one", "a"), ("two", "b")], steps=5, label_order=["b", "a"])
    assert (found.name, found.version, found.labels, found.counts) == ("tickets", 3, ["a", "b"], {"a": 1, "b": 1})
    [(method, path, body, headers)] = server.asked
    assert (method, path) == ("POST", "v1/tasks")
    examples = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    assert body == {"name": "tickets", "examples": examples, "how": "head", "steps": 5, "label_order": ["b", "a"]}
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["prefer"] == "wait=30"
    assert len(headers["idempotency-key"]) == 36
    client.add("a b/c", [{"title": "three", "kind": 1}], text="title", label="kind")
    method, path, body, again = server.asked[-1]
    assert (method, path, body) == ("PUT", "v1/tasks/a b/c/examples", {"examples": [{"text": "three", "label": "1"}]})
    assert again["idempotency-key"] != headers["idempotency-key"]
    client.relearn("tickets")
    client.remove("tickets", ["one"])
    client.delete("tickets")
    assert [asked[:3] for asked in server.asked[-3:]] == [
        ("POST", "v1/tasks/tickets/relearn", None),
        ("DELETE", "v1/tasks/tickets/examples", {"texts": ["one"]}),
        ("DELETE", "v1/tasks/tickets", None),
    ]
    with pytest.raises(DataError, match="has no label to learn from"):
        client.add("tickets", ["one"])


def test_a_job_is_waited_for(client: Client, server: StandIn) -> None:
    waiting = JSONResponse(job(state="waiting", done=0), 202)
    server.answers = [waiting, job(), job(), job(done=2, state="done", version=3), task("tickets", version=3)]
    seen: list[Job] = []
    assert client.learn("tickets", [("one", "a")], on_progress=seen.append).version == 3
    assert [(one.state, one.done) for one in seen] == [("waiting", 0), ("running", 1), ("done", 2)]
    assert server.asked[0][3]["prefer"] == "respond-async"
    assert [path for _, path, *_ in server.asked[1:]] == ["v1/jobs/7"] * 3 + ["v1/tasks/tickets"]
    server.answers = [JSONResponse(job(), 202), job(state="failed", error="too few examples")]
    with pytest.raises(AbmllError, match=r"^tickets: its job ended as failed: too few examples$"):
        client.add("tickets", [("one", "a")])
    server.answers = [JSONResponse(job(state="cancelled"), 202)]
    with pytest.raises(AbmllError, match=r"^tickets: its job ended as cancelled$"):
        client.relearn("tickets")


def test_answers(client: Client, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS_A_REQUEST", 2)
    one = {"label": "a", "probabilities": {"a": 0.9, "b": 0.1}, "entropy": 0.3, "mutual_information": 0.04}
    reply = {"task": "tickets", "version": 3, "labels": ["a", "b"], "answers": [one, one]}
    server.answers = [reply, {**reply, "answers": [{**one, "truncated": True}]}]
    found = client.predict("tickets", ["x", "y", "z"])
    assert found[0] == Answer("a", {"a": 0.9, "b": 0.1}, 0.3, 0.04, False)
    assert [one.truncated for one in found] == [False, False, True]
    assert [asked[2] for asked in server.asked] == [{"texts": ["x", "y"]}, {"texts": ["z"], "version": 3}]
    assert float(server.asked[0][3]["request-timeout"]) == 60
    assert client.predict("tickets", []) == []
    server.answers = [{"order": [1, 0], "mutual_information": [0.2, 0.1]}]
    assert client.suggest("tickets", ["x", "y"]).order == [1, 0]
    assert server.asked[-1][2] == {"texts": ["x", "y"], "number": 10}


def test_what_is_known(client: Client, server: StandIn) -> None:
    server.answers = [{"tasks": [task("a")], "next": "a/b"}, {"tasks": [task("c", quality=QUALITY)], "next": None}]
    found = client.tasks()
    assert [one.name for one in found] == ["a", "c"]
    assert found[1].quality == Quality(0.8, 0.4, 0.06, 12)
    assert [asked[1] for asked in server.asked] == ["v1/tasks", "v1/tasks?after=a%2Fb"]
    assert client.task("tickets").state == "ready"
    server.answers = [
        {"versions": [{"version": 1, "created": "", "num_examples": 2, "state": "ready", "quality": None}]}
    ]
    assert [one.version for one in client.versions("tickets")] == [1]
    server.answers = [{"examples": [{"text": "one", "label": "a", "version": 1}]}]
    assert client.examples("tickets") == [StoredExample("one", "a", 1)]
    server.answers = [{**QUALITY, "bins": [{"low": 0, "high": 1, "confidence": 0.5, "accuracy": None, "count": 0}]}]
    assert client.quality("tickets").bins[0].accuracy is None
    server.answers = [job(id=7)]
    assert client.job("7").id == 7
    client.cancel(7)
    assert server.asked[-1][:2] == ("DELETE", "v1/jobs/7")


def test_an_export(client: Client, server: StandIn, tmp_path: Path) -> None:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("posterior.json", "{}")
    server.answers = [Response(packed.getvalue(), media_type="application/zip")]
    path = client.export("tickets", tmp_path / "new" / "tickets.zip")
    assert zipfile.ZipFile(path).namelist() == ["posterior.json"]
    with pytest.raises(AbmllError, match="exists already"):
        client.export("tickets", path)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(client: Client, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", waits.append)
    server.answers = [
        Problem(429, "the queue is full", headers={"Retry-After": "2"}),
        Problem(503, "not ready", headers={"Retry-After": "9999"}),
        Problem(503, "not ready"),
    ]
    client.add("tickets", [("one", "a")])
    assert len(server.asked) == 4
    assert len({asked[3]["idempotency-key"] for asked in server.asked}) == 1
    assert waits[:2] == [2.0, 60.0]
    assert 0 < waits[2] < 1
    server.asked.clear()
    server.answers = [Problem(429, "the queue is full") for _ in range(9)]
    with pytest.raises(Refused, match=r"^the queue is full$") as refused:
        client.task("tickets")
    assert (refused.value.status, len(server.asked)) == (429, connection.ATTEMPTS)


def test_a_task_that_went_with_the_first_attempt_is_deleted(client: Client, server: StandIn) -> None:
    server.answers = [Problem(503, "stopping"), Problem(404, "no task")]
    client.delete("tickets")
    server.answers = [Problem(404, "no task 'tickets'")]
    with pytest.raises(Refused, match="no task 'tickets'"):
        client.delete("tickets")


def test_refusals(client: Client, running: tuple[StandIn, str], server: StandIn) -> None:
    server.answers = [Problem(409, "there is a task 'tickets' already; choose another name")]
    with pytest.raises(Refused, match=r"^there is a task 'tickets' already; choose another name$") as refused:
        client.learn("tickets", [("one", "a")])
    assert refused.value.status == 409
    with pytest.raises(Refused, match=r"the body has more than 100,000 bytes") as refused:
        client.predict("tickets", ["x" * 200_000])
    assert refused.value.status == 413
    server.answers = [Response("<html>", 502, media_type="text/html")]
    with pytest.raises(Refused, match=r"answered 502 Bad Gateway; check the address"):
        client.task("tickets")
    server.answers = [Response("cut", 500, media_type="application/problem+json")]
    with pytest.raises(Refused, match="answered 500"):
        client.task("tickets")
    server.answers = [{"hello": "world"}]
    with pytest.raises(AbmllError, match=r"does not answer as abmll serve does \(name: Field required\)"):
        client.task("tickets")
    with Client(running[1]) as stranger, pytest.raises(Refused, match="this server asks for a token"):
        stranger.tasks()


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", waits.append)
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(AbmllError, match=r"cannot be reached .*; is the server"),
    ):
        client.tasks()
    assert len(waits) == connection.ATTEMPTS - 1
    assert all(low <= wait <= 2 * low for low, wait in zip([0.1, 0.2, 0.4, 0.8], waits, strict=True))


def test_arguments_that_cannot_be() -> None:
    for url in ("127.0.0.1:8000", "ftp://host", "http://", "http://["):
        with pytest.raises(ConfigError, match="is no address of a server"):
            Client(url)
    with pytest.raises(ConfigError, match="timeout"):
        Client(timeout=0)
    with pytest.raises(ConfigError, match="token: has characters") as refused:
        Client(token="schlüssel")
    assert "schl" not in str(refused.value)
