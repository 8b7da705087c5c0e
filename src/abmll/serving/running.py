"""A server as a process: it listens, says where, and ends in order."""

import socket
from collections.abc import Callable, Sequence

import uvicorn

from abmll.common.errors import ConfigError
from abmll.model.meta_learner import AbmllModel
from abmll.serving.access import Tokens
from abmll.serving.app import make_app
from abmll.serving.limits import ServeConfig
from abmll.serving.service import Service

BACKLOG = 2048  # connections that wait to be accepted
GRACE = 20  # seconds for requests to come to their end


def run(
    load: Callable[[], AbmllModel],
    database: str,
    files: str,
    limits: ServeConfig,
    place: tuple[str, int],
    tokens: Tokens | None = None,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve what ``load`` gives until the process is told to end.

    Raises ``ConfigError`` where nobody can listen at ``place``.
    """
    listening = _listening(*place)  # before anything is loaded
    service = Service(load, database, files, limits)
    app = make_app(service, place[0], tokens, allowed_hosts, allowed_origins)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
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
    uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        [family, kind, protocol, _, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"host, port: cannot listen at {host}:{port} ({error.strerror}); choose others") from error
    return listening
