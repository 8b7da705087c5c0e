"""What a server refuses, as RFC 9457 has it: a JSON object with a type, a title, a status and one line of detail."""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abmll.common.errors import AbmllError, ConfigError, DataError, one_line
from abmll.common.files import FULL

MEDIA_TYPE = "application/problem+json"
LONGEST = 1_000  # characters of a detail; what a user sent is never given back whole
SHOWN = 60  # characters of one name in a detail

logger = logging.getLogger(__name__)


class Problem(Exception):
    """A request that is not answered, and why.

    Args:
        status: the HTTP status.
        detail: one line that says what is wrong and what to do.
        title: the kind of problem in a few words; the status's own by default.
        word: names the kind for programs, as ``/problems/WORD``; without it the status says enough.
        headers: of the response, such as ``Retry-After``.
        instance: names this one occurrence, so that it can be found in the log.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        title: str = "",
        word: str = "",
        headers: Mapping[str, str] | None = None,
        instance: str = "",
    ) -> None:
        self.status = status
        self.detail = _shortened(one_line(detail), LONGEST)
        self.title = title or HTTPStatus(status).phrase
        self.word = word
        self.headers = dict(headers or {})
        self.instance = instance
        super().__init__(self.detail)

    def document(self) -> dict[str, Any]:
        """The problem as JSON has it."""
        kind = f"/problems/{self.word}" if self.word else "about:blank"
        found = {"type": kind, "title": self.title, "status": self.status, "detail": self.detail}
        return found | ({"instance": self.instance} if self.instance else {})

    def response(self) -> Response:
        """The problem as a response, which is an ASGI application as well."""
        body = json.dumps(self.document(), ensure_ascii=False).encode("utf-8")
        return Response(body, self.status, self.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let ``app`` answer whatever is raised in it with a problem."""
    app.add_exception_handler(Problem, _answered)
    app.add_exception_handler(AbmllError, _answered)
    app.add_exception_handler(HTTPException, _answered)
    app.add_exception_handler(RequestValidationError, _answered)
    app.add_middleware(Unexpected)


class Unexpected:
    """Middleware that answers an exception nobody expected: 500, and nothing of its text but in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application. Raises the exception again where a part of the answer has gone out already."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            return  # nobody is there to be answered
        except Exception as error:  # a defect of one route must not end the connection without a word
            if scope["type"] != "http" or started:
                raise
            await problem_of(error, Request(scope)).response()(scope, receive, send)


def problem_of(error: Exception, request: Request) -> Problem:
    """What to say of an exception; one that is not the asker's to mend is logged, and its text kept back."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return Problem(422, _validation_detail(error.errors()), word="invalid")
    if isinstance(error, HTTPException):
        return _of_http(error, request)
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
        return _logged(error, request, 507, "the server's disk is full; nothing was changed, try again later")
    if isinstance(error, AbmllError) and not isinstance(error.__cause__, OSError):
        return Problem(422 if isinstance(error, DataError | ConfigError) else 400, str(error))
    return _logged(error, request, 500, "the server failed at this request")


async def _answered(request: Request, error: Exception) -> Response:
    return problem_of(error, request).response()


def _logged(error: Exception, request: Request, status: int, detail: str) -> Problem:
    name = f"urn:uuid:{uuid.uuid4()}"
    where = _shortened(one_line(request.url.path), LONGEST)
    logger.error("%s %s failed, request %s", request.method, where, name, exc_info=error)
    return Problem(status, f"{detail}; its log has more, under the request's name {name}", instance=name)


def _of_http(error: HTTPException, request: Request) -> Problem:
    """What the framework itself refuses: an address or a method that is not there; and what it wraps of ours."""
    if isinstance(error.__cause__, Problem):  # of a body that cannot be read
        return error.__cause__
    detail, path = str(error.detail), _shortened(request.url.path, SHOWN)
    if detail == "Not Found":
        detail = f"there is nothing at {path}; /docs lists what there is"
    elif detail == "Method Not Allowed":
        allowed = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow") or "another method"
        detail = f"{_shortened(request.method, SHOWN)} is not possible at {path}; use {allowed}"
    return Problem(error.status_code, detail, headers=error.headers)


def _validation_detail(errors: Sequence[Any]) -> str:
    """The first thing that is wrong with a request, where it is in the user's own words, and how many more are."""
    first = errors[0]
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    message = message[:1].lower() + message[1:] if message[1:2].islower() else message
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{_place(first['loc'])}: {_shortened(message, 300)}{more}"


def _place(location: Sequence[Any]) -> str:
    """("body", "examples", 3, "label") as "examples[3].label", ("query", "after") as "query 'after'"."""
    source, *names = location or ("body",)
    if source != "body":
        return f"{source} '{_shortened('.'.join(map(str, names)), SHOWN)}'"
    text = "".join(f"[{name}]" if isinstance(name, int) else f".{_shortened(name, SHOWN)}" for name in names)
    return text.removeprefix(".") or "the body"


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
