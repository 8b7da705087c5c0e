"""Many at once, and some who go away: everybody is answered or told when to ask again, and nobody waits for others."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
from abmll import AbmllModel
from abmll.serving.access import read_tokens
from abmll.serving.app import make_app
from abmll.serving.service import Service
from tests.serving.live_server import running
from tests.serving.survival import SECONDS, URL, load, make_service, new, rows

CROWD = 1000
PATIENT = {"Request-Timeout": "120"}


pytestmark = pytest.mark.usefixtures("few_chains")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> AbmllModel:
    return load(tiny_llama)


@pytest.fixture
def service_of(model: AbmllModel, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """service_of(limits...): a service on a folder of its own."""
    made: list[Service] = []

    def make(**limits: Any) -> Service:
        made.append(make_service(model, tmp_path / "store", **limits))
        return made[-1]

    yield make
    for service in made:
        service.close()


class Gate:
    """A reader that lets passes through one at a time, once it is told how many."""

    def __init__(self, service: Service) -> None:
        self.read = service.engine.readers["features"]
        self.passes: list[int] = []  # rows of each
        self.let = threading.Semaphore(0)
        service.engine.readers = {"features": self}

    def __call__(self, given: Sequence[Any]) -> Sequence[Any]:
        assert self.let.acquire(timeout=SECONDS)
        self.passes.append(len(given))
        return self.read(given)

    def open(self) -> None:
        self.let.release(1_000_000)


def run(service: Service, act: Callable[[httpx.AsyncClient], Awaitable[Any]], **given: Any) -> Any:
    """What an asynchronous client gets, without a network."""

    async def acting() -> Any:
        transport = httpx.ASGITransport(make_app(service, **given), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=URL, timeout=SECONDS) as client:
            return await act(client)

    return asyncio.run(acting())


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def ask(client: httpx.AsyncClient, texts: Sequence[str], name: str = "a", **headers: str) -> Awaitable[httpx.Response]:
    return client.post(f"/v1/tasks/{name}/predict", json={"texts": list(texts)}, headers=headers)


async def learned(client: httpx.AsyncClient, name: str = "a", **headers: str) -> None:
    """Task ``name``, which has answered once."""
    assert (await client.post("/v1/tasks", json=new(name), headers=headers)).status_code == 201
    assert (await ask(client, ["first"], name, **headers)).status_code == 200


def test_a_thousand_at_once(service_of: Callable[..., Service]) -> None:
    async def act(client: httpx.AsyncClient) -> list[httpx.Response]:
        await learned(client)
        found = await asyncio.gather(*(ask(client, [f"who is {n % 50}"], **PATIENT) for n in range(CROWD)))
        again = await asyncio.gather(*(ask(client, [f"who is {n}"], **PATIENT) for n in range(50)))
        assert all(found[n].content == again[n % 50].content for n in range(CROWD))  # whoever came first
        return found

    service = service_of()
    found = run(service, act)
    assert [one.status_code for one in found] == [200] * CROWD
    assert service.engine.waiting == 0


def test_a_queue_that_is_full(service_of: Callable[..., Service]) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        await learned(client)
        gate = Gate(service)
        texts = [[f"{n} {k}" for k in range(4)] for n in range(40)]
        asked = [asyncio.ensure_future(ask(client, own, **PATIENT)) for own in texts]
        await until(lambda: sum(one.done() for one in asked) >= 30)  # 20 rows in a pass, 20 that wait
        learning = asyncio.ensure_future(client.put("/v1/tasks/a/examples", json={"examples": rows(30, 50)}))
        await until(lambda: service.engine.waiting > 20)  # a job that was accepted is done, whatever waits
        gate.open()
        found = await asyncio.gather(*asked)
        refused = [one for one in found if one.status_code != 200]
        assert {one.status_code for one in refused} == {429}
        assert 30 <= len(refused) < 40
        for one in refused:
            assert int(one.headers["retry-after"]) >= 1
            assert one.json()["type"] == "/problems/queue-full"
        assert (await learning).json()["num_examples"] == 36
        assert (await ask(client, ["later"])).status_code == 200

    service = service_of(max_queue=20)
    run(service, act)


def test_a_request_whose_time_is_over(service_of: Callable[..., Service]) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        await learned(client)
        gate = Gate(service)
        late = await ask(client, [f"late {n}" for n in range(200)], **{"Request-Timeout": "0.3"})
        assert (late.status_code, late.json()["type"]) == (504, "/problems/too-late")
        gate.open()
        await until(lambda: service.engine.waiting == 0)
        assert sum(gate.passes) < 200  # nobody reads what nobody waits for
        assert (await ask(client, ["later"])).status_code == 200

    service = service_of()
    run(service, act)


def test_a_client_that_goes_away(service_of: Callable[..., Service]) -> None:
    service = service_of()
    with running(make_app(service)) as url, httpx.Client(base_url=url, timeout=SECONDS) as client:
        assert client.post("/v1/tasks", json=new("a")).status_code == 201
        assert client.post("/v1/tasks/a/predict", json={"texts": ["first"]}).status_code == 200
        gate = Gate(service)
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=url, timeout=0.5) as hasty:
            hasty.post("/v1/tasks/a/predict", json={"texts": [f"gone {n}" for n in range(500)]})
        gate.let.release(2)
        asyncio.run(until(lambda: service.engine.waiting == 0))
        assert sum(gate.passes) < 500
        gate.open()
        assert client.post("/v1/tasks/a/predict", json={"texts": ["later"]}).status_code == 200


def test_a_slow_body(service_of: Callable[..., Service]) -> None:
    with running(make_app(service_of(body_seconds=0.2))) as url:
        host, port = url.removeprefix("http://").split(":")
        head = f"POST /v1/tasks/a/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), SECONDS) as slow:
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_one_who_asks_for_much_does_not_hold_up_another(service_of: Callable[..., Service], tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one 0123456789abcdef-one\ntwo 0123456789abcdef-two\n")
    path.chmod(0o600)
    one, two = ({"Authorization": f"Bearer 0123456789abcdef-{name}"} for name in ("one", "two"))

    async def act(client: httpx.AsyncClient) -> None:
        await learned(client, **one)
        await learned(client, **two)
        gate = Gate(service)
        much = asyncio.ensure_future(ask(client, [f"much {n}" for n in range(5000)], **one, **PATIENT))
        await until(lambda: service.engine.waiting > 4000)
        little = asyncio.ensure_future(ask(client, ["little"], **two))
        await until(lambda: len(service.engine.queue.tenants) == 2)
        for _ in range(2):  # the pass that had begun, and the next one
            gate.let.release()
        assert (await little).status_code == 200
        assert len(gate.passes) <= 2
        much.cancel()
        gate.open()

    service = service_of()
    run(service, act, tokens=read_tokens(path))


def test_tenants_see_nothing_of_each_other(service_of: Callable[..., Service], tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one 0123456789abcdef-one\ntwo 0123456789abcdef-two\n")
    path.chmod(0o600)
    one, two = ({"Authorization": f"Bearer 0123456789abcdef-{name}"} for name in ("one", "two"))

    async def act(client: httpx.AsyncClient) -> None:
        key = {"Idempotency-Key": "same"}
        made = await client.post("/v1/tasks", json=new("a"), headers={**one, **key})
        job = made.headers["location"]
        assert (await client.get(job, headers=one)).status_code == 200
        asked: list[tuple[str, str, Any]] = [
            ("GET", "/v1/tasks/a", None),
            ("GET", "/v1/tasks/a/examples", None),
            ("GET", "/v1/tasks/a/versions", None),
            ("GET", "/v1/tasks/a/quality", None),
            ("POST", "/v1/tasks/a/predict", {"texts": ["a"]}),
            ("POST", "/v1/tasks/a/suggest", {"texts": ["a"]}),
            ("POST", "/v1/tasks/a/export", {}),
            ("PUT", "/v1/tasks/a/examples", {"examples": rows(1)}),
            ("POST", "/v1/tasks/a/relearn", None),
            ("DELETE", "/v1/tasks/a", None),
            ("GET", job, None),
            ("GET", f"{job}/events", None),
            ("DELETE", job, None),
        ]
        for method, address, body in asked:
            for headers, status in ((two, 404), ({}, 401), ({"Authorization": "Bearer 0123456789abcdef-six"}, 401)):
                found = await client.request(method, address, json=body, headers=headers)
                assert found.status_code == status, (method, address)
        assert (await client.get("/v1/tasks", headers=two)).json()["tasks"] == []
        own = await client.post("/v1/tasks", json=new("a", 8), headers={**two, **key})  # the key is another tenant's
        assert (own.status_code, own.json()["num_examples"]) == (201, 8)
        assert (await client.get("/v1/tasks/a", headers=one)).json()["num_examples"] == 6
        assert (await client.delete("/v1/tasks/a", headers=two)).status_code == 204
        assert (await ask(client, ["b"], **one)).status_code == 200

    run(service_of(), act, tokens=read_tokens(path))


def test_how_often_a_tenant_may_ask(service_of: Callable[..., Service]) -> None:
    async def act(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.get("/v1/tasks") for _ in range(30)))

    found = run(service_of(requests_per_second=1e-3), act)
    refused = [one for one in found if one.status_code == 429]
    assert len(refused) == 29  # a bucket holds one at least
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)


def test_the_same_key_again(service_of: Callable[..., Service]) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        key = {"Idempotency-Key": "one"}
        made = await asyncio.gather(*(client.post("/v1/tasks", json=new("a"), headers=key) for _ in range(8)))
        assert {one.status_code for one in made} == {201}
        assert len({one.headers["location"] for one in made}) == 1
        other = await client.post("/v1/tasks", json=new("b"), headers=key)
        assert (other.status_code, other.json()["type"]) == (422, "/problems/other-request")
        more = {"examples": rows(2, 10)}
        put = [client.put("/v1/tasks/a/examples", json=more, headers={"Idempotency-Key": "two"}) for _ in range(4)]
        assert {one.json()["version"] for one in await asyncio.gather(*put)} == {2}
        again = [client.post("/v1/tasks/a/relearn", headers={"Idempotency-Key": "three"}) for _ in range(4)]
        assert {one.json()["version"] for one in await asyncio.gather(*again)} == {3}
        assert len((await client.get("/v1/tasks/a/versions")).json()["versions"]) == 3

    run(service_of(), act)


def test_a_task_that_is_deleted_while_it_is_asked_and_taught(service_of: Callable[..., Service]) -> None:
    async def act(client: httpx.AsyncClient) -> None:
        for n in range(4):
            await learned(client)
            asked = [ask(client, [f"{n} {k}"]) for k in range(10)]
            taught = [client.put("/v1/tasks/a/examples", json={"examples": rows(2, 10 * k)}) for k in range(3)]
            seen = [client.get("/v1/tasks") for _ in range(5)]
            gone = client.delete("/v1/tasks/a")
            found = await asyncio.gather(*asked, *taught, gone, *seen)
            assert {one.status_code for one in found} <= {200, 204, 404, 409, 422}, [one.text for one in found]
            assert (await client.get("/v1/tasks/a")).status_code == 404
        await until(lambda: not service.jobs.live)
        service.fitters.submit(lambda: None).result()
        assert (await client.get("/v1/tasks")).json()["tasks"] == []

    service = service_of()
    run(service, act)
    service.close()
    assert list(Path(service.files.objects.root).rglob("*.safetensors")) == []
