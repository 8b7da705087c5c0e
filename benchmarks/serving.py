"""Cells on the server as a process, asked over HTTP: a request, an update, many clients, and ten thousand tasks."""

import asyncio
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import httpx
import torch

from abmll.language.encoding import Encoded
from abmll.model.learned_task import TaskPosterior
from abmll.model.meta_learner import AbmllModel
from abmll.tasks import Example
from benchmarks.bench import Bench
from benchmarks.pairs import Spread
from benchmarks.rows import Row, compared
from benchmarks.starting import model_folder

TASKS, CLIENTS, TEXTS = 32, 64, 640
FEW, MANY = 10, 10_000
NAMES = ("billing", "delivery", "other")
SUPPORT = 20
READY = 120  # seconds


class Numbers:
    """Texts that no one has asked before: those of the workload, each with a number of its own."""

    def __init__(self, bench: Bench) -> None:
        self.texts = [" ".join(one.input.split()[:28]) for task in bench.workload.evaluation for one in task.test[:40]]
        self.next = count()

    def __call__(self) -> str:
        number = next(self.next)
        return f"{self.texts[number % len(self.texts)]} {number}"


@contextmanager
def served(bench: Bench, store: Path, *flags: str) -> Iterator[tuple[str, int, float]]:
    """A server's address, its process, and the seconds until it was ready."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "abmll", "serve", "--store", str(store), "--port", str(port), "--quiet", *flags]
    command += ["--model", model_folder(bench), "--device", bench.device]
    started, url = time.perf_counter(), f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command)
    try:
        while True:
            assert process.poll() is None, "the server has ended"
            assert time.perf_counter() - started < READY, "the server is not ready"
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.02)
        yield url, process.pid, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(timeout=60)


def learn(client: httpx.Client, name: str, number: int, texts: Numbers) -> None:
    """Learn a task; its labels are dealt out in a way of its own, and it has answered once."""
    examples = [{"text": texts(), "label": NAMES[(place + number) % 3]} for place in range(SUPPORT)]
    client.post("/v1/tasks", json={"name": name, "examples": examples}).raise_for_status()
    client.post(f"/v1/tasks/{name}/predict", json={"texts": [texts()]}).raise_for_status()


def one_client(bench: Bench) -> list[Row]:
    """A request and an update of one client / a plain forward pass of the same text."""
    model = AbmllModel.from_base(bench.base())  # with the server's own prompt
    texts = Numbers(bench)

    def plain(text: str) -> float:
        example = Example("0", text, NAMES, None)
        batch = model.scorer.batch(model.scorer.encode([example], "tickets"))
        started = time.perf_counter()
        with torch.no_grad():
            model.scorer.scores(batch, None)
        return time.perf_counter() - started

    with (
        tempfile.TemporaryDirectory() as folder,
        served(bench, Path(folder)) as (url, _, _),
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        learn(client, "tickets", 0, texts)
        plain(texts())
        found: dict[str, list[float]] = {"plain": [], "request": [], "update": [], "first": []}
        for _ in range(2 if bench.quick else 25):
            text = texts()
            found["plain"].append(plain(text))
            found["request"].append(_posted(client, "post", "tickets/predict", {"texts": [text]}))
            example = {"text": texts(), "label": NAMES[0]}
            found["update"].append(_posted(client, "put", "tickets/examples", {"examples": [example]}))
            found["first"].append(_posted(client, "post", "tickets/predict", {"texts": [texts()]}))
    rows = []
    about = (
        ("request", "a request", 1.25),
        ("update", "an update with one example", 1.3),
        ("first", "the first answer of a new version, which is fitted for it", None),
    )
    for name, what, target in about:
        ratios = [one / other for one, other in zip(found[name], found["plain"], strict=True)]
        middle = median(found[name]), median(found["plain"])
        rows.append(
            compared(f"server: {what} / a plain forward pass ({bench.dtype})", Spread.of(ratios), *middle, "s", target)
        )
    return rows


def many_clients(bench: Bench) -> list[Row]:
    """Texts answered by a server to 64 clients and many tasks / the like offline in batches, at the same time.

    Offline by the same tasks, all texts read together; and by one task, which reads once what its prompts begin with.
    """
    model = AbmllModel.from_base(bench.base())  # with the server's own prompt
    texts = Numbers(bench)
    posteriors = [model.adapt(_support(texts, task), task_name=f"task{task}") for task in range(TASKS)]
    for posterior in posteriors:
        posterior.predict([texts()])  # fitted
    number = 16 if bench.quick else TEXTS
    times: dict[str, list[float]] = {"server": [], "same": [], "one": []}
    with tempfile.TemporaryDirectory() as folder, served(bench, Path(folder)) as (url, _, _):
        with httpx.Client(base_url=url, timeout=120) as client:
            for task in range(TASKS):
                learn(client, f"task{task}", task, texts)
        for _ in range(1 if bench.quick else 3):
            asked = [[texts() for _ in range(number)] for _ in times]
            times["same"].append(_offline(posteriors, asked[0]))
            times["server"].append(asyncio.run(_asked(url, asked[1])))
            times["one"].append(_offline(posteriors[:1], asked[2]))
    rows = []
    for name, offline, target in (("the same tasks", "same", 1 / 0.85), ("one task", "one", None)):
        ratios = [one / other for one, other in zip(times["server"], times[offline], strict=True)]
        middle = median(times["server"]), median(times[offline])
        label = f"{number} texts of {CLIENTS} clients to {TASKS} tasks / offline in batches, {name} ({bench.dtype})"
        rows.append(compared(f"server: {label}", Spread.of(ratios), *middle, "s", target))
    return rows


def many_tasks(bench: Bench) -> list[Row]:
    """Start and memory of a server with 10,000 tasks / with ten."""
    texts, few, many = Numbers(bench), FEW, (40 if bench.quick else MANY)
    with tempfile.TemporaryDirectory() as folder:
        stores = {few: Path(folder) / "few", many: Path(folder) / "many"}
        with served(bench, stores[few]) as (url, _, _), httpx.Client(base_url=url, timeout=120) as client:
            for number in range(few):
                learn(client, f"task{number:05}", number, texts)
        multiplied(stores[few], stores[many], many)
        seconds: dict[int, list[float]] = {few: [], many: []}
        memory: dict[int, list[float]] = {few: [], many: []}
        for _ in range(1 if bench.quick else 3):
            for size, store in stores.items():
                with served(bench, store) as (url, process, ready):
                    with httpx.Client(base_url=url, timeout=120) as client:
                        for number in range(few):
                            client.post(
                                f"/v1/tasks/task{number:05}/predict", json={"texts": [texts()]}
                            ).raise_for_status()
                        client.get("/v1/tasks").raise_for_status()
                    seconds[size].append(ready)
                    memory[size].append(resident(process))
    ready = [one / other for one, other in zip(seconds[many], seconds[few], strict=True)]
    held = [one / other for one, other in zip(memory[many], memory[few], strict=True)]
    label = f"{many:,} tasks / {few}"
    return [
        compared(f"server: start ({label})", Spread.of(ready), median(seconds[many]), median(seconds[few]), "s", 2.0),
        compared(f"server: memory ({label})", Spread.of(held), median(memory[many]), median(memory[few]), "MB", 1.15),
    ]


def multiplied(source: Path, target: Path, number: int) -> None:
    """A store with copies of a store's tasks, so many in all; their files are the same ones."""
    (target / "posteriors").mkdir(parents=True)
    with sqlite3.connect(source / "store.sqlite") as old:
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (target / "store.sqlite").write_bytes((source / "store.sqlite").read_bytes())
    own = len(list(source.glob("posteriors/*/*")))
    with sqlite3.connect(target / "store.sqlite") as db:
        columns = {
            table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            for table in ("tasks", "examples", "versions", "jobs")
        }
        for task in range(1, number + 1):
            like = (task - 1) % own + 1
            if task > own:
                for table, names in columns.items():
                    changed = {
                        "tasks": {"id": task, "name": f"task{task - 1:05}"},
                        "examples": {"id": None, "task": task},
                        "versions": {"task": task},
                        "jobs": {"id": f"job{task}", "task": task},
                    }[table]
                    key = "id" if table == "tasks" else "task"
                    kept = [name for name in names if name not in changed]
                    listed, taken = ", ".join([*changed, *kept]), ", ".join([*("?" for _ in changed), *kept])
                    query = f"INSERT INTO {table} ({listed}) SELECT {taken} FROM {table} WHERE {key} = ?"
                    db.execute(query, [*changed.values(), like])
            folder = target / "posteriors" / str(task // 1000) / str(task)
            folder.mkdir(parents=True)
            for path in (source / "posteriors" / str(like // 1000) / str(like)).iterdir():
                os.link(path, folder / path.name)


def resident(process: int) -> float:
    """The memory that a process holds, in MB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1000


def _posted(client: httpx.Client, method: str, path: str, body: object) -> float:
    started = time.perf_counter()
    client.request(method, f"/v1/tasks/{path}", json=body).raise_for_status()
    return time.perf_counter() - started


def _support(texts: Numbers, task: int) -> list[Example]:
    return [Example(str(place), texts(), NAMES, (place + task) % 3) for place in range(SUPPORT)]


def _offline(posteriors: Sequence[TaskPosterior], texts: Sequence[str]) -> float:
    """Seconds in which the posteriors answer the texts in turn, which are read in batches beforehand."""
    asked = [(posteriors[n % len(posteriors)], Example(str(n), text, NAMES, None)) for n, text in enumerate(texts)]
    started = time.perf_counter()
    head = posteriors[0].head
    assert head is not None
    head.reader.read([one for posterior, example in asked for one in _encoded(posterior, example)])
    for number, posterior in enumerate(posteriors):
        posterior.predict([example for _, example in asked[number :: len(posteriors)]])
    return time.perf_counter() - started


def _encoded(posterior: TaskPosterior, example: Example) -> Sequence[Encoded]:
    return posterior.scorer.encode([example], posterior.task_name)


async def _asked(url: str, texts: Sequence[str]) -> float:
    """Seconds in which so many clients, each with one text at a time, have all answers.

    They write and read HTTP by hand: of two cores that they share with the server they take as little as can be.
    """
    waiting, address = list(enumerate(texts)), urlsplit(url)

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while waiting:
            number, text = waiting.pop()
            body = json.dumps({"texts": [text]}).encode()
            head = f"POST /v1/tasks/task{number % TASKS}/predict HTTP/1.1\r\nHost: {address.hostname}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            assert answer.startswith("HTTP/1.1 200 "), answer
            length = re.search(r"(?i)^content-length: (\d+)", answer, re.MULTILINE)
            assert length is not None
            assert "probabilities" in json.loads(await reader.readexactly(int(length[1])))["answers"][0]
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return time.perf_counter() - started
