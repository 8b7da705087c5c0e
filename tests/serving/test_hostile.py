"""Requests that nobody should make are refused in one line, and the next one is answered."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from tests.conftest import shorten_chains
from tests.serving.survival import Served, load, new, rows, served

JSON = {"Content-Type": "application/json"}
ODD = [
    "<script>alert(1)</script>",
    "=1+1",
    "@SUM(A1)",
    "+1",
    "-1",
    "\u202egnp.exe",
    "a,b",
    '"q"',
    "é😀",
    "'; DROP TABLE",
]


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has learned task ``a``; the tests change nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        shorten_chains(patch)
        with served(load(tiny_llama), tmp_path_factory.mktemp("hostile") / "store") as found:
            assert found.client.post("/v1/tasks", json=new("a")).status_code == 201
            yield found


@pytest.fixture(autouse=True)
def _alive(server: Served) -> Iterator[None]:
    """Whatever was asked, it has changed nothing, and the next one is answered."""
    yield
    assert [task["name"] for task in server.client.get("/v1/tasks").json()["tasks"]] == ["a"]
    assert server.client.get("/v1/tasks/a").json()["num_examples"] == 6
    assert server.client.post("/v1/tasks/a/predict", json={"texts": ["who is it"]}).status_code == 200


def refused(response: Any, *statuses: int) -> str:
    assert response.status_code in statuses, (response.status_code, response.text[:300])
    assert response.headers["content-type"] == "application/problem+json"
    detail = response.json()["detail"]
    assert "\n" not in detail
    assert len(detail) <= 1000
    assert "Traceback" not in response.text
    return detail


TEXT = '{"texts": ["a"]%s}'
BODIES: dict[str, bytes] = {
    "not UTF-8": b'{"texts": ["\xff\xfe"]}',
    "half of a pair": rb'{"texts": ["\ud800"]}',
    "a zero byte": rb'{"texts": ["a\u0000b"]}',
    "a raw zero byte": b'{"texts": ["a\x00b"]}',
    "very deep": b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and open": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "NaN": (TEXT % ', "version": NaN').encode(),
    "infinity": (TEXT % ', "version": 1e999').encode(),
    "a fraction": (TEXT % ', "version": 1.5').encode(),
    "a huge number": (TEXT % f', "version": {10**30}').encode(),
    "a number of 10,000 digits": (TEXT % f', "version": {"9" * 10_000}').encode(),
    "beyond a database's": (TEXT % f', "version": {2**63}').encode(),
    "below one": (TEXT % ', "version": 0').encode(),
    "a key twice": b'{"texts": ["a"], "texts": ["b"]}',
    "a key nobody reads": (TEXT % ', "temperature": 1').encode(),
    "no texts": b'{"texts": []}',
    "a blank text": b'{"texts": [" \\n "]}',
    "texts are a text": b'{"texts": "a"}',
    "texts of numbers": b'{"texts": [1]}',
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "half of an object": b'{"texts": ["a"',
    "two objects": b'{"texts": ["a"]}{"texts": ["a"]}',
    "10,001 texts": json.dumps({"texts": ["a"] * 10_001}).encode(),
    "a text above the limit": json.dumps({"texts": ["a" * 1_000_001]}).encode(),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("verb", ["predict", "suggest"])
def test_odd_questions(kind: str, verb: str, server: Served) -> None:
    body = BODIES[kind].replace(b'"version"', b'"number"') if verb == "suggest" else BODIES[kind]
    refused(server.client.post(f"/v1/tasks/a/{verb}", content=body, headers=JSON), 400, 413, 422)


def test_a_version_that_there_is_not(server: Served) -> None:
    body = {"texts": ["a"], "version": 2**31 - 1}
    assert "version 2147483647" in refused(server.client.post("/v1/tasks/a/predict", json=body), 404)


EXAMPLES: dict[str, bytes] = {
    "10,000 rows": json.dumps({"examples": rows(10_000)}).encode(),
    "201 labels": json.dumps({"examples": [{"text": f"t{n}", "label": f"l{n}"} for n in range(201)]}).encode(),
    "a label of two lines": json.dumps({"examples": [{"text": "t", "label": "a\nb"}]}).encode(),
    "a label of 201 characters": json.dumps({"examples": [{"text": "t", "label": "l" * 201}]}).encode(),
    "a blank label": json.dumps({"examples": [{"text": "t", "label": " "}]}).encode(),
    "half of a pair": rb'{"examples": [{"text": "\udc00", "label": "bug"}]}',
    "a zero byte in a label": rb'{"examples": [{"text": "t", "label": "b\u0000"}]}',
    "not UTF-8": b'{"examples": [{"text": "\xff", "label": "bug"}]}',
    "a label of a number": b'{"examples": [{"text": "t", "label": 1}]}',
    "very deep": b'{"examples": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "none": b'{"examples": []}',
    "a key twice": b'{"examples": [{"text": "t", "label": "bug", "label": "billing"}]}',
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_odd_examples(kind: str, server: Served) -> None:
    detail = refused(server.client.put("/v1/tasks/a/examples", content=EXAMPLES[kind], headers=JSON), 400, 413, 422)
    if kind == "10,000 rows":
        assert "at most 1,000" in detail
    named = b'{"name": "b", ' + EXAMPLES[kind][1:]
    refused(server.client.post("/v1/tasks", content=named, headers=JSON), 400, 413, 422)


TABLES: dict[str, bytes] = {
    "not UTF-8": b"text,label\n\xff\xfe,bug\nb,billing\n",
    "a zero byte": b"text,label\na\x00,bug\nb,billing\n",
    "one column": b"text\na\nb\n",
    "nothing": b"",
    "a heading alone": b"text,label\n",
    "an open quote": b'text,label\n"a,bug\nb,billing\n',
    "a row too long": b"text,label\na,bug,more\nb,billing\n",
    "one label": b"text,label\na,bug\nb,bug\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_odd_tables(kind: str, server: Served) -> None:
    headers = {"Content-Type": "text/csv"}
    detail = refused(server.client.post("/v1/tasks?name=b", content=TABLES[kind], headers=headers), 400, 422)
    assert "/tmp" not in detail
    assert "body.csv" not in detail


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "../a", "%2e%2e", "", " ", "a b", "ä", "a\0", "-a", "a" * 101, "a\n"]
)
def test_names_that_are_none(name: str, server: Served) -> None:
    refused(server.client.post("/v1/tasks", json=new(name)), 422)


@pytest.mark.parametrize(
    "path", ["%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c", "a%00", "%ff", "a%0d%0aX-Odd:1", "a" * 5000]
)
def test_addresses_that_lead_elsewhere(path: str, server: Served) -> None:
    for method, rest in (("GET", ""), ("GET", "/examples"), ("DELETE", ""), ("POST", "/relearn"), ("GET", "/versions")):
        response = server.client.request(method, f"/v1/tasks/{path}{rest}", headers=JSON)
        assert response.status_code in (404, 405)
        assert "x-odd" not in response.headers
    assert server.client.get(f"/page/{path}").status_code == 404
    refused(server.client.get(f"/v1/jobs/{path}"), 404)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/csv", ""]
)
def test_content_types(kind: str, server: Served) -> None:
    response = server.client.post("/v1/tasks/a/predict", content=b'{"texts": ["a"]}', headers={"Content-Type": kind})
    refused(response, 415)


@pytest.mark.parametrize("header", [{"Request-Timeout": "x"}, {"Request-Timeout": "-1"}, {"Request-Timeout": "nan"},
                                    {"Request-Timeout": "1e9"}])  # fmt: skip
def test_odd_times(header: dict[str, str], server: Served) -> None:
    refused(server.client.post("/v1/tasks/a/predict", json={"texts": ["a"]}, headers=header), 400)


def test_odd_pages(server: Served) -> None:
    for query in ("limit=-1", "limit=99999999999999999999", "after=%00", "after=%ff", "after=" + "z" * 5000):
        assert server.client.get(f"/v1/tasks?{query}").status_code in (200, 422), query


def test_odd_keys(server: Served) -> None:
    refused(server.client.post("/v1/tasks", json=new("a"), headers={"Idempotency-Key": "k" * 201}), 400)
    refused(server.client.post("/v1/tasks", json=new("a"), headers={"Idempotency-Key": "k"}), 409)
    refused(server.client.post("/v1/tasks", json=new("a"), headers={"Idempotency-Key": "k"}), 409)


def test_odd_labels_and_texts_come_back_as_they_were(server: Served) -> None:
    examples = [{"text": f"{odd} {n}", "label": odd} for odd in ODD for n in range(2)]
    made = server.client.post("/v1/tasks", json={"name": "odd", "examples": examples})
    try:
        assert made.status_code == 201, made.text
        assert set(made.json()["labels"]) == set(ODD)
        listed = server.client.get("/v1/tasks/odd/examples").json()["examples"]
        assert [(one["text"], one["label"]) for one in listed] == [(one["text"], one["label"]) for one in examples]
        answer = server.client.post("/v1/tasks/odd/predict", json={"texts": ["x\r\ny\t\u2028z"]})
        assert set(answer.json()["answers"][0]["probabilities"]) == set(ODD)
        table = server.client.get("/v1/tasks/odd/examples", headers={"Accept": "text/csv"}).text
        for formula in ("=1+1", "@SUM(A1)"):
            assert f"'{formula}" in table
    finally:
        assert server.client.delete("/v1/tasks/odd").status_code == 204


def test_a_long_text_and_many_texts_are_answered(server: Served) -> None:
    long = server.client.post("/v1/tasks/a/predict", json={"texts": ["word " * 200_000]})
    assert long.status_code == 200
    assert long.json()["answers"][0]["truncated"] is True
    many = server.client.post("/v1/tasks/a/predict", json={"texts": ["who is it"] * 10_000})
    assert many.status_code == 200
    assert len(many.json()["answers"]) == 10_000
