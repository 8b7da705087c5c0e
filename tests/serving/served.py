"""A server over a tiny model, asked as a client asks it, without a network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from abmll import AbmllModel
from abmll.serving.app import make_app
from abmll.serving.limits import ServeConfig
from abmll.serving.service import Service

LABELS = ("x", "y")
PAIRS = [(f"{'ab'[n % 2] * 3} {n}", LABELS[n % 2]) for n in range(8)]
ASKED = ["aaa 17", "bbb 19", "abab"]


def rows(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Pairs of text and label as JSON has them."""
    return [{"text": text, "label": label} for text, label in pairs]


@contextmanager
def serving(
    model: AbmllModel, folder: Path, limits: ServeConfig | None = None, database: str | None = None, **given: Any
) -> Iterator[TestClient]:
    """A client of a server whose store is in ``folder``; ``client.app.state.service`` is what it answers with."""
    folder.mkdir(exist_ok=True)
    url = database or f"sqlite:///{folder / 'store.sqlite'}"
    service = Service(model, url, str(folder / "files"), limits or ServeConfig())
    with TestClient(make_app(service, **given), base_url="http://127.0.0.1") as client:
        yield client


def service_of(client: TestClient) -> Service:
    """What the client's server answers with."""
    app: Any = client.app
    return app.state.service


def learn(client: TestClient, name: str = "tickets", pairs: Sequence[tuple[str, str]] = PAIRS, **more: Any) -> Any:
    """The answer to a new task's request."""
    return client.post("/v1/tasks", json={"name": name, "examples": rows(pairs), **more})


def ask(client: TestClient, texts: Sequence[str] = ASKED, name: str = "tickets", **more: Any) -> Any:
    """The answer to a request for answers."""
    return client.post(f"/v1/tasks/{name}/predict", json={"texts": list(texts), **more})
