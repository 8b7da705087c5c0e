"""A server of an application on a free port of this computer, and databases."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving import postgres as postgresql


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address at which ``app`` answers inside."""
    import uvicorn

    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        taken.close()


@pytest.fixture(scope="module")
def listen() -> Iterator[Callable[[Any], str]]:
    """listen(app): the address of ``app``, until the module's tests have run."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(listening(app))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    pytest.importorskip("psycopg")
    if reason := postgresql.lacking():
        pytest.skip(reason)
    with postgresql.postgres() as server:
        yield server


@pytest.fixture
def shared_database(postgres: str) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    with postgresql.empty_database(postgres) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return request.getfixturevalue("shared_database")
