"""The server's HTTP interface, put together."""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abmll._version import __version__
from abmll.common.errors import AbmllError, CheckpointError
from abmll.serving import answer_routes, page_files, task_routes
from abmll.serving.access import Tokens
from abmll.serving.asking import Served, Tenant
from abmll.serving.completions import completions_router
from abmll.serving.doors import guard
from abmll.serving.engine import NoMemory
from abmll.serving.fair_queue import QueueFull, TooLate
from abmll.serving.gauges import Gauges
from abmll.serving.interface import REFUSALS, Described, sends
from abmll.serving.job_store import NoSuchJob
from abmll.serving.problems import Problem, install
from abmll.serving.replies import About, Limits
from abmll.serving.service import Service
from abmll.serving.storage_errors import StorageError, StorageFull
from abmll.serving.task_changes import NameTaken, OtherRequest, TooMany
from abmll.serving.task_store import NoSuchTask
from abmll.tasks.types import MAX_OPTIONS

LOG = logging.getLogger("abmll.serving")
STATUS: dict[type[AbmllError], tuple[int, str]] = {
    NoSuchTask: (404, "no-task"),
    NoSuchJob: (404, "no-job"),
    NameTaken: (409, "name-taken"),
    OtherRequest: (422, "other-request"),
    TooMany: (422, "too-many"),
    QueueFull: (429, "queue-full"),
    NoMemory: (503, "no-memory"),
    TooLate: (504, "too-late"),
    StorageFull: (507, "storage-full"),
    StorageError: (503, "storage"),
    CheckpointError: (503, "damaged"),
}


def make_app(
    service: Service,
    host: str = "127.0.0.1",
    tokens: Tokens | None = None,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
) -> FastAPI:
    """An ASGI application that answers with ``service``, which is closed when the application ends.

    ``host`` is where it listens, ``tokens`` say who may ask; for the rest see ``doors.guard``.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = Described(
        title="ABMLL", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=REFUSALS
    )
    app.state.service = service
    for kind in STATUS:
        app.add_exception_handler(kind, _refused)
    install(app)
    app.add_middleware(Counted, gauges=service.gauges)
    guard(app, service.limits, host, tokens, allowed_hosts, allowed_origins)
    app.add_api_route("/healthz", healthy, methods=["GET"], tags=["server"])
    app.add_api_route("/readyz", ready, methods=["GET"], tags=["server"])
    app.add_api_route("/metrics", metrics, methods=["GET"], tags=["server"], **sends("text/plain"))
    app.add_api_route("/v1/server", about, methods=["GET"], tags=["server"])
    for router in (task_routes.router, answer_routes.router, page_files.router):
        app.include_router(router)
    app.include_router(completions_router(service.scored, service.limits))
    return app


async def healthy() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


async def ready(service: Served) -> dict[str, str]:
    """The model is in memory, and its thread works."""
    if not service.engine.thread.is_alive():
        raise Problem(503, "the thread that reads with the model has ended; start the server anew")
    return {"status": "ready"}


def metrics(service: Served) -> Response:
    """Counts and times, as Prometheus reads them."""
    return Response(service.gauges.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def about(service: Served, tenant: Tenant) -> About:
    """What this server is, and what it can be asked."""
    limits = service.limits
    return About(
        version=__version__,
        model=service.resident.name,
        device=str(service.resident.reading.scorer.device),
        tenant=tenant,
        adapters=service.resident.stepping is not None,
        limits=Limits(
            texts=limits.max_texts,
            text_characters=limits.max_text_characters,
            examples=limits.max_examples,
            labels=MAX_OPTIONS,
            body_bytes=int(limits.max_body_mb * 1e6),
        ),
    )


async def _refused(request: Request, error: Exception) -> Response:
    kind = next(kind for kind in type(error).__mro__ if kind in STATUS)
    status, word = STATUS[kind]
    headers = {"Retry-After": str(round(error.seconds))} if isinstance(error, QueueFull) else {}
    if kind in (StorageError, StorageFull, CheckpointError):
        LOG.error("%s %s: %s", request.method, request.url.path, error)
    told = error.told if isinstance(error, StorageError) else str(error)
    return Problem(status, told, word=word, headers=headers).response()


class Counted:
    """Middleware that counts requests and their time, by the route's pattern: names of tasks are none of a metric's."""

    def __init__(self, app: ASGIApp, gauges: Gauges) -> None:
        self.app = app
        self.gauges = gauges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.monotonic(), 499  # the client has gone before an answer began

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:  # whatever it is, it goes on to whoever answers for it
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.gauges.requests.labels(route, str(status)).inc()
            self.gauges.seconds.labels(route).observe(time.monotonic() - started)
