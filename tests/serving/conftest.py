"""A server of an application on a free port of this computer, and databases."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import postgres as postgresql
from tests.serving.live_server import running


@pytest.fixture(scope="module")
def listen() -> Iterator[Callable[[Any], str]]:
    """listen(app): the address of ``app``, until the module's tests have run."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(running(app))


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
