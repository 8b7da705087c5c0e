"""Many servers under Ray Serve: requests for one task go to the replica that has it in memory.

serve run --app-dir examples ray_serve:build database=postgresql+psycopg://... files=/shared replicas=2
"""

import re
from pathlib import Path

import httpx
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

TASK = re.compile(r"/v1/tasks/([^/]+)")
BY_NAME = {"request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"}
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class Settings(BaseModel):
    """What ``serve run`` is given as NAME=VALUE."""

    database: str  # that all replicas share, such as postgresql+psycopg://USER@HOST/NAME
    files: str  # of posteriors, that all replicas share: a folder or an address such as s3://BUCKET/FOLDER
    theta: Path = Path("auto")  # as of abmll serve
    model: str | None = None  # the language model, where there is no training run
    token_file: Path | None = None
    allowed_host: str | None = None  # the name under which the cluster is asked
    replicas: int = 2
    cpus: float = 1
    gpus: float = 0


@serve.deployment(request_router_config=BY_NAME)
class Server:
    """What ``abmll serve`` serves, without a port of its own."""

    def __init__(self, settings: Settings) -> None:
        from abmll.cli.loading import load_for_serving
        from abmll.common.config import PlaceConfig
        from abmll.serving.access import read_tokens
        from abmll.serving.app import make_app
        from abmll.serving.limits import ServeConfig
        from abmll.serving.service import Service

        theta = None if settings.theta == Path("none") else settings.theta
        model = load_for_serving(theta, PlaceConfig(model=settings.model), quiet=True)
        self.service = Service(model, settings.database, settings.files, ServeConfig())
        tokens = None if settings.token_file is None else read_tokens(settings.token_file)
        hosts = [] if settings.allowed_host is None else [settings.allowed_host]
        self.transport = httpx.ASGITransport(make_app(self.service, tokens=tokens, allowed_hosts=hosts))

    async def answer(self, method: str, url: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Answer:
        """What the application answers."""
        request = httpx.Request(method, url, headers=headers, content=body)
        response = await self.transport.handle_async_request(request)
        own = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-length"]
        return response.status_code, [*own, (b"x-replica", self.name.encode())], await response.aread()

    @property
    def name(self) -> str:
        """Ray's name of this replica."""
        return serve.get_replica_context().replica_id.unique_id

    def check_health(self) -> None:
        """Ray starts another replica where this raises."""
        if not self.service.engine.thread.is_alive():
            raise RuntimeError("the thread that reads with the model has ended")

    def __del__(self) -> None:
        """Ray ends a replica so."""
        self.service.close()


@serve.deployment()
class Door:
    """Gives each request to the replica that the name of its task belongs to."""

    def __init__(self, servers: DeploymentHandle) -> None:
        self.servers = servers.options(method_name="answer")

    async def __call__(self, request: Request) -> Response:
        """Any request that ``abmll serve`` answers."""
        task = TASK.match(request.url.path)
        servers = self.servers.options(session_id=task[1]) if task else self.servers
        asked = request.method, str(request.url), request.headers.raw, await request.body()
        status, headers, body = await servers.remote(*asked)
        response = Response(body, status)
        response.raw_headers += [(name.lower(), value) for name, value in headers]
        return response


def build(settings: Settings) -> Application:
    """The application for ``serve run``."""
    place = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    servers = Server.options(num_replicas=settings.replicas, ray_actor_options=place).bind(settings)
    return Door.bind(servers)
