"""A browser, and the page of a server that answers without a model."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.browser import Site, chromium_running, visiting
from tests.serving.live_server import running
from tests.serving.server_stand_in import StandIn, stand_in_app


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with chromium_running() as browser:
        yield browser


@pytest.fixture
def state() -> StandIn:
    """What the server knows; nothing at first."""
    return StandIn()


@pytest.fixture
def site(chromium: Any, state: StandIn) -> Iterator[Site]:
    with running(stand_in_app(state)) as url, visiting(chromium, url) as site:
        yield site
