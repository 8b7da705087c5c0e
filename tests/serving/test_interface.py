"""What the server says of its interface is what it takes and gives: its answers have the form that is described."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from abmll import AbmllModel
from abmll.common.config import LearningConfig
from tests.serving.served import ASKED, ask, learn, rows, service_of, serving

pytestmark = pytest.mark.usefixtures("few_chains")
TASK = "/v1/tasks/{name}"


@pytest.fixture
def client(tiny_model: AbmllModel, tmp_path: Path) -> Iterator[TestClient]:
    tiny_model.learning = LearningConfig(method="head")
    with serving(tiny_model, tmp_path / "store") as client:
        yield client


def described(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects within a document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The description, where no form has a key that it does not name."""
    found = copy.deepcopy(document)
    for one in parts(found["components"]["schemas"]):
        if one.get("type") == "object" and "properties" in one:
            one["additionalProperties"] = False
    return found


def check(document: dict[str, Any], response: Any, path: str, media_type: str = "application/json") -> None:
    """An answer has the form that is described of its method, address and status."""
    jsonschema = pytest.importorskip("jsonschema")
    answers = document["paths"][path][response.request.method.lower()]["responses"]
    status = str(response.status_code) if str(response.status_code) in answers else f"{response.status_code // 100}XX"
    schema = answers[status]["content"][media_type]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": document["components"]})


def test_every_form_that_is_referred_to_is_there(client: TestClient) -> None:
    document = described(client)
    places = {one["$ref"] for one in parts(document) if "$ref" in one}
    assert "#/components/schemas/NewTask" in places
    for place in places:
        found = document
        for name in place.removeprefix("#/").split("/"):
            found = found[name]
    assert not any("$defs" in one for one in parts(document))
    assert "HTTPValidationError" not in document["components"]["schemas"]  # refusals have another form


def test_parameters_and_headers_are_described(client: TestClient) -> None:
    paths = described(client)["paths"]
    found = {
        (path, method): {(one["in"], one["name"]) for one in operation.get("parameters", [])}
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    csv = {("query", "text"), ("query", "label")}
    change = {("header", "Prefer"), ("header", "Idempotency-Key")}
    name, asked = {("path", "name")}, {("header", "Request-Timeout")}
    assert found["/v1/tasks", "post"] == {("query", "name"), ("query", "how")} | csv | change
    assert found[f"{TASK}/examples", "put"] == name | csv | change
    assert found[f"{TASK}/examples", "delete"] == found[f"{TASK}/relearn", "post"] == name | change
    assert found[f"{TASK}/predict", "post"] == found[f"{TASK}/suggest", "post"] == name | asked
    for path, method in (("/v1/tasks", "post"), (f"{TASK}/examples", "put")):
        assert set(paths[path][method]["requestBody"]["content"]) == {"application/json", "text/csv"}


def test_answers_have_the_forms_that_are_described(client: TestClient) -> None:
    document = closed(described(client))
    check(document, learn(client), "/v1/tasks")
    ask(client)
    service_of(client).fitters.submit(lambda: None).result()  # what was learned has been measured by now
    check(document, client.get("/v1/tasks/tickets/quality"), f"{TASK}/quality")
    more = {"examples": rows([("aba 5", "x")])}
    later = client.put("/v1/tasks/tickets/examples", json=more, headers={"Prefer": "respond-async"})
    assert later.status_code == 202
    check(document, later, f"{TASK}/examples")
    check(document, client.get(later.headers["location"]), "/v1/jobs/{job}")
    check(document, client.put("/v1/tasks/tickets/examples", json=more), f"{TASK}/examples")
    check(document, client.get("/v1/tasks"), "/v1/tasks")
    for rest in ("", "/versions", "/examples"):
        check(document, client.get(f"/v1/tasks/tickets{rest}"), TASK + rest)
    check(document, ask(client), f"{TASK}/predict")
    check(document, client.post("/v1/tasks/tickets/suggest", json={"texts": ASKED}), f"{TASK}/suggest")
    check(document, client.get("/v1/server"), "/v1/server")
    check(document, client.get("/v1/models"), "/v1/models")
    check(document, client.get("/v1/tasks/none"), TASK, "application/problem+json")
    check(document, client.post("/v1/tasks", json={"name": 1}), "/v1/tasks", "application/problem+json")
    check(document, client.post("/v1/tasks?name=a&how=both", json={}), "/v1/tasks", "application/problem+json")


def test_what_is_no_json_is_described_by_its_type(client: TestClient) -> None:
    paths = described(client)["paths"]
    for path, method, media_type in (
        (f"{TASK}/reliability.svg", "get", "image/svg+xml"),
        (f"{TASK}/export", "post", "application/zip"),
        ("/v1/jobs/{job}/events", "get", "text/event-stream"),
        ("/metrics", "get", "text/plain"),
    ):
        assert list(paths[path][method]["responses"]["200"]["content"]) == [media_type]
    assert "text/csv" in paths[f"{TASK}/examples"]["get"]["responses"]["200"]["content"]
