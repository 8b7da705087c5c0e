"""A server as a process: it listens, says where, and ends in order."""

import socket
from collections.abc import Callable, Sequence

import uvicorn

from abmll.common.allocator import giving_back
from abmll.model.meta_learner import AbmllModel
from abmll.serving.access import Tokens
from abmll.serving.app import make_app
from abmll.serving.hosts import BACKLOG
from abmll.serving.limits import ServeConfig
from abmll.serving.service import Service

GRACE = 20  # seconds for requests to come to their end
GIVE_BACK = 60  # seconds between two times that freed memory goes back to the system


def run(
    load: Callable[[], AbmllModel],
    database: str,
    files: str,
    limits: ServeConfig,
    listening: socket.socket,
    host: str,
    tokens: Tokens | None = None,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve what ``load`` gives to who connects to ``listening``, at ``host``, until the process is told to end."""
    service = Service(load, database, files, limits)
    app = make_app(service, host, tokens, allowed_hosts, allowed_origins)
    address, port = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    tasks = service.store.number()
    say(f"serving {tasks:,} tasks over {service.resident.name} at http://{shown}:{port} (Ctrl-C ends it)")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
    )
    with giving_back(GIVE_BACK):
        uvicorn.Server(config).run(sockets=[listening])
