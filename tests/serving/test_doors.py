"""A request gets in with a known host, from the server's own page, with a body of a type and size that is read."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

pytest.importorskip("fastapi")
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from abmll.serving.bodies import WholeBody
from abmll.serving.doors import guard
from abmll.serving.hosts import host_name
from abmll.serving.limits import ServeConfig
from abmll.serving.problems import install

URL = "http://127.0.0.1:8000"
SITE = "https://desk.example"
JSON = {"Content-Type": "application/json"}


def served(host: str = "127.0.0.1", megabytes: float = 1.0, **settings: Any) -> TestClient:
    app = FastAPI()
    install(app)

    @app.post("/v1/tasks")
    @app.put("/v1/tasks/{name}/examples")
    @app.post("/v1/tasks/{name}/predict")
    @app.get("/v1/tasks")
    @app.delete("/v1/tasks/{name}")
    async def echo(request: Request) -> int:
        return len(await request.body())

    guard(app, replace(ServeConfig(), max_body_mb=megabytes), host, None, **settings)
    return TestClient(app, base_url=URL)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "localhost."])
def test_known_hosts(host: str) -> None:
    assert served().get("/v1/tasks", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "10.0.0.1", "", "localhost:x", "a b", "[::1"]
)
def test_strange_hosts(host: str) -> None:
    response = served().get("/v1/tasks", headers={"Host": host})
    assert (response.status_code, response.json()["type"]) == (421, "/problems/host")


def test_hosts_of_a_server_that_listens_everywhere() -> None:
    client = served("0.0.0.0", allowed_hosts=["Desk.example"])
    for host in ("10.1.2.3:8000", "[fe80::1]", "desk.example:443", "localhost"):
        assert client.get("/v1/tasks", headers={"Host": host}).status_code == 200, host
    assert client.get("/v1/tasks", headers={"Host": "evil.example"}).status_code == 421
    assert served("box.lan").get("/v1/tasks", headers={"Host": "box.lan:8000"}).status_code == 200
    assert host_name("[::1]:8000") == host_name("::1".join("[]")) == "::1"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},  # another program's page on this computer
        {"Origin": "http://evil@127.0.0.1:8000"},
        {"Origin": "ftp://127.0.0.1:8000"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_sites_page_changes_nothing(headers: dict[str, str]) -> None:
    client = served()
    for method, path in (("POST", "/v1/tasks"), ("DELETE", "/v1/tasks/a"), ("PUT", "/v1/tasks/a/examples")):
        response = client.request(method, path, headers={**JSON, **headers})
        assert (response.status_code, response.json()["type"]) == (403, "/problems/origin"), method
    response = client.get("/v1/tasks", headers=headers)  # it changes nothing, and the page cannot see the answer
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": URL}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}]
)
def test_the_own_page_and_programs_may(headers: dict[str, str]) -> None:
    assert served().post("/v1/tasks", json={}, headers=headers).status_code == 200


def test_a_site_that_is_allowed() -> None:
    client = served(allowed_origins=[SITE + "/"])
    response = client.post("/v1/tasks", json={}, headers={"Origin": SITE, "Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == SITE
    assert client.post("/v1/tasks", json={}, headers={"Origin": SITE + ".evil.example"}).status_code == 403
    asked = {"Origin": SITE, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "Authorization"}
    assert client.options("/v1/tasks", headers=asked).status_code == 200
    assert client.options("/v1/tasks", headers={**asked, "Origin": "https://evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/json-patch+json",
        "application/json; charset=latin-1",
        "",
        "text/csv",
    ],
)
def test_a_form_reaches_nothing(kind: str) -> None:
    response = served().post("/v1/tasks/a/predict", content=b'{"texts": ["a"]}', headers={"Content-Type": kind})
    assert response.status_code == 415
    assert response.json()["detail"].startswith("the body must be application/json in UTF-8")


def test_bodies_that_are_read() -> None:
    client = served()
    for kind in ("application/json", "Application/JSON; charset=UTF-8", 'text/csv; charset="utf-8"; header=present'):
        assert client.post("/v1/tasks", content=b"abc", headers={"Content-Type": kind}).json() == 3, kind
        assert client.put("/v1/tasks/a/examples", content=b"abc", headers={"Content-Type": kind}).json() == 3
    assert client.post("/v1/tasks").json() == 0
    assert client.delete("/v1/tasks/a").json() == 0
    assert client.post("/v1/tasks", content=b"abc").status_code == 415
    assert client.post("/v1/tasks", content=iter([b"abc"])).status_code == 415
    assert client.post("/v1/tasks", content=b"abc", headers={**JSON, "Content-Encoding": "gzip"}).status_code == 415
    assert client.post("/v1/tasks", content=iter([b"ab", b"", b"c"]), headers=JSON).json() == 3


def test_large_bodies() -> None:
    client = served(megabytes=0.001)
    assert client.post("/v1/tasks", content=b"x" * 1000, headers=JSON).json() == 1000
    for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 401])):
        response = client.post("/v1/tasks", content=content, headers=JSON)
        assert (response.status_code, response.headers["connection"]) == (413, "close")
        assert "1,000 bytes" in response.json()["detail"]
    assert client.request("GET", "/v1/tasks", content=b"x" * 1001).status_code == 413
    for length, status in (("9" * 4000, 413), ("-1", 400), ("x", 400), ("\u00b2".encode("latin-1"), 400)):
        response = client.post("/v1/tasks", content=b"", headers={**JSON, "Content-Length": length})  # pyright: ignore
        assert response.status_code == status


def run(app: Any, receive: Callable[[], Awaitable[Any]], **scope: Any) -> list[Any]:
    """What ``app`` sends to a POST."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], **scope}
    anyio.run(app, scope, receive, send)
    return sent


async def unreached(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the application was asked")


def test_a_slow_body() -> None:
    async def drip() -> dict[str, Any]:
        await anyio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent = run(WholeBody(unreached, limit=1000, seconds=0.05), drip)
    assert sent[0]["status"] == 408


def test_a_client_that_goes_is_not_answered() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert run(WholeBody(unreached, limit=1000, seconds=5), gone) == []


def test_what_comes_behind_the_body_is_passed_on() -> None:
    messages = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c"},
        {"type": "http.disconnect"},
    ]
    seen = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    run(WholeBody(app, limit=1000, seconds=5), receive)
    assert seen == [{"type": "http.request", "body": b"abc", "more_body": False}, {"type": "http.disconnect"}]


def test_answers_stream_and_are_guarded() -> None:
    app = FastAPI()

    @app.get("/v1/events")
    def events() -> StreamingResponse:
        return StreamingResponse(iter(["a", "b"]), headers={"Cache-Control": "private"})

    guard(app, ServeConfig(), "127.0.0.1", None)

    async def receive() -> dict[str, Any]:
        await anyio.sleep(0.001)
        return {"type": "http.request", "body": b"", "more_body": False}

    host = [(b"host", b"127.0.0.1")]
    sent = run(app, receive, method="GET", path="/v1/events", headers=host, query_string=b"", raw_path=b"/v1/events")
    assert [message.get("body") for message in sent[1:3]] == [b"a", b"b"]
    headers = dict(sent[0]["headers"])
    assert headers[b"content-security-policy"].startswith(b"default-src 'self';")
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert headers[b"cache-control"] == b"private"
