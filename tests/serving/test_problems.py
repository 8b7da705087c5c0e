"""Whatever is raised in the server comes out as a problem of RFC 9457, and nothing of its insides with it."""

import errno
import logging
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from abmll.common.errors import AbmllError, ConfigError, DataError
from abmll.serving.json_bodies import StrictRoute
from abmll.serving.problems import MEDIA_TYPE, Problem, install


class Labelled(BaseModel):
    text: str
    label: str


class Order(BaseModel):
    examples: list[Labelled]
    number: int = 1


def full_disk() -> AbmllError:
    error = AbmllError("cannot write /store/secret: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


RAISED: dict[str, Exception] = {
    "problem": Problem(429, "wait\na\x1b[31mwhile", word="queue", headers={"Retry-After": "3"}),
    "data": DataError("examples[3]: its label is empty; give every label a text"),
    "config": ConfigError("steps: is 0; use a whole number of 1 or more"),
    "other": AbmllError("out of patience; ask again"),
    "full": full_disk(),
    "unexpected": RuntimeError("password hunter2"),
}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.router.route_class = StrictRoute
    install(app)

    @app.get("/raise/{name}")
    def fail(name: str) -> None:
        raise RAISED[name]

    @app.post("/order")
    def order(order: Order, after: int = 0) -> Order:
        return order

    @app.get("/stream")
    def stream() -> StreamingResponse:
        def lines() -> Any:
            yield "first"
            raise RuntimeError("too late")

        return StreamingResponse(lines())

    return TestClient(app)


def problem(response: Any) -> dict[str, Any]:
    assert response.headers["content-type"] == MEDIA_TYPE
    found = response.json()
    assert found["status"] == response.status_code
    assert "\n" not in found["detail"]
    return found


def test_a_problem_says_all_it_has(client: TestClient) -> None:
    response = client.get("/raise/problem")
    expected = {"type": "/problems/queue", "title": "Too Many Requests", "status": 429}
    assert problem(response) == {**expected, "detail": "wait a\\x1b[31mwhile"}
    assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(("name", "status"), [("data", 422), ("config", 422), ("other", 400)])
def test_a_line_for_the_user_is_kept(client: TestClient, name: str, status: int) -> None:
    response = client.get(f"/raise/{name}")
    assert response.status_code == status
    assert problem(response)["detail"] == str(RAISED[name])
    assert problem(response)["type"] == "about:blank"


@pytest.mark.parametrize(("name", "status"), [("full", 507), ("unexpected", 500)])
def test_what_the_user_cannot_mend_is_in_the_log_alone(
    client: TestClient, caplog: pytest.LogCaptureFixture, name: str, status: int
) -> None:
    with caplog.at_level(logging.ERROR):
        response = client.get(f"/raise/{name}")
    assert response.status_code == status
    found = problem(response)
    assert found["instance"].startswith("urn:uuid:")
    assert found["instance"] in found["detail"]
    assert "secret" not in response.text
    assert "hunter2" not in response.text
    [record] = caplog.records
    assert found["instance"] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is RAISED[name]


def test_a_broken_answer_is_broken_off(client: TestClient) -> None:
    with pytest.raises(RuntimeError, match="too late"):
        client.get("/stream")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"examples": [{"text": "a", "label": "x"}, {"text": "b"}]}, "examples[1].label: field required"),
        ({"examples": [], "number": "many"}, "number: should be a valid integer"),
        ([1], "the body: should be a valid dictionary"),
        ({"examples": [{"text": 1, "label": 2}]}, "examples[0].text: should be a valid string (and 1 more)"),
    ],
)
def test_invalid_fields_are_named_as_the_user_wrote_them(client: TestClient, body: Any, detail: str) -> None:
    response = client.post("/order", json=body)
    assert response.status_code == 422
    assert problem(response)["detail"].startswith(detail)


def test_invalid_bodies_and_queries(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    found = problem(client.post("/order", content=b'{"examples": ]', headers=headers))
    assert found["detail"] == "the body is no JSON (character 13: Expecting value); send one JSON object"
    found = problem(client.post("/order", content=b'{"examples": "\xff"}', headers=headers))
    assert "no UTF-8" in found["detail"]
    found = problem(client.post("/order", content=b"[" * 100_000, headers=headers))
    assert found["status"] == 400
    assert found["detail"].startswith("the body: nested more than 64 levels deep; ")
    found = problem(client.post("/order", content=b'{"examples": [], "number": 1, "number": 2}', headers=headers))
    assert found["status"] == 400
    assert found["detail"].startswith("the body: the key 'number' occurs twice; ")
    found = problem(client.post("/order?after=x", json={"examples": []}))
    assert found["detail"].startswith("query 'after': should be a valid integer")


def test_no_megabyte_comes_back(client: TestClient) -> None:
    long = "x" * 1_000_000
    for body in ({"examples": [{long: 1}]}, {"examples": long}, {"examples": [], "number": long}, {long: 1}):
        assert len(client.post("/order", json=body).content) < 2_000
    assert len(Problem(400, long).response().body) < 2_000


def test_addresses_and_methods_that_are_not_there(client: TestClient) -> None:
    found = problem(client.get("/nowhere"))
    assert (found["status"], found["detail"]) == (404, "there is nothing at /nowhere; /docs lists what there is")
    response = client.get("/order")
    assert problem(response)["detail"] == "GET is not possible at /order; use POST"
    assert response.headers["allow"] == "POST"
