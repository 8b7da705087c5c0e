"""A server on a free port of this computer, for tests that need a real one: a browser, a client, lm-eval."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

SECONDS_TO_START = 30


@contextmanager
def running(app: Any, **settings: Any) -> Iterator[str]:
    """Serve an ASGI application from another thread; gives its address, without a slash at the end.

    ``settings`` are uvicorn's. Raises ``RuntimeError`` where it does not start.
    """
    settings = {
        "host": "127.0.0.1",
        "port": 0,
        "log_level": "warning",
        "timeout_graceful_shutdown": 1,
        "ws": "none",
        **settings,
    }
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + SECONDS_TO_START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    try:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(SECONDS_TO_START)
