"""What the tests of a server that survives share: a tiny model, a service, a client, a process that can be killed."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi.testclient import TestClient

from abmll import AbmllModel
from abmll.posterior import head
from abmll.serving.access import Tokens
from abmll.serving.app import make_app
from abmll.serving.limits import ServeConfig
from abmll.serving.service import Service
from abmll.tasks import Example

URL = "http://127.0.0.1:8000"
LABELS = ("bug", "billing")
SECONDS = 120
PRELOADED = ["abmll.cli.serve", "abmll.cli.loading", "abmll.serving.running", "abmll.model.meta_learner"]


class Served(NamedTuple):
    """A service in this process, and who asks it."""

    service: Service
    client: TestClient


def load(folder: Path) -> AbmllModel:
    """The tiny model, as a server has it that was given no training run."""
    return AbmllModel.from_base(str(folder))


def make_service(model: AbmllModel, store: Path, **limits: Any) -> Service:
    """A service on a folder, as ``abmll serve`` makes one."""
    store.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"batch_window_ms": 0.0, **limits}
    return Service(model, f"sqlite:///{store / 'store.sqlite'}", str(store / "posteriors"), ServeConfig(**settings))


@contextmanager
def served(model: AbmllModel, store: Path, tokens: Tokens | None = None, **limits: Any) -> Iterator[Served]:
    """A service with its interface, which ends with the block."""
    service = make_service(model, store, **limits)
    app = make_app(service, tokens=tokens)
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
        yield Served(service, client)


def rows(number: int, start: int = 0) -> list[dict[str, str]]:
    """Labelled examples, of both labels in turn."""
    return [{"text": f"text {n} {'ab'[n % 2]}", "label": LABELS[n % 2]} for n in range(start, start + number)]


def new(name: str, number: int = 6, **more: Any) -> dict[str, Any]:
    """The body that makes a task."""
    return {"name": name, "examples": rows(number), **more}


class Process:
    """``abmll serve`` in a process of its own, which can be killed at any moment."""

    def __init__(self, model: Path, store: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = store.parent / f"{store.name}.log"
        place = ["--model", str(model), "--device", "cpu", "--dtype", "fp32"]
        arguments = ["serve", "--store", str(store), "--port", str(port), *place, *flags]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.process = context.Process(target=_serve, args=(arguments, str(self.log)))
        self.process.start()

    def wait_ready(self) -> None:
        """Until it answers."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            assert self.process.is_alive(), self.log.read_text()
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError(f"the server does not answer: {self.log.read_text()}")

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.process.kill()
        self.process.join()

    def end(self) -> int | None:
        """Ask it to end; its exit code."""
        self.process.terminate()
        self.process.join(SECONDS)
        return self.process.exitcode


def _serve(arguments: list[str], log: str) -> None:
    from abmll.cli.main import entry

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    head.CHAINS = head.FEWEST_CHAINS = 16  # as shorten_chains has it
    sys.exit(entry(arguments))


def passes(service: Service) -> int:
    """How often the model has read since the service began."""
    return int(service.gauges.registry.get_sample_value("abmll_pass_rows_count") or 0)


def example(text: str) -> Example:
    """A text as tasks made by ``new`` ask it."""
    return Example("0", text, tuple(sorted(LABELS)), None)


def together(server: Served, texts: Sequence[str], name: str = "a") -> list[Any]:
    """The responses to requests of one text each, which are all there at the same time."""
    with ThreadPoolExecutor(len(texts)) as pool:
        ask = partial(server.client.post, f"/v1/tasks/{name}/predict")
        return list(pool.map(lambda text: ask(json={"texts": [text]}), texts))
