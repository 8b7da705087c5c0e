"""What a request may bring: a body of a type that is read, not too large, and not too slow."""

import re
from collections.abc import Sequence

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abmll.serving.problems import Problem

READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
CSV_PATHS = re.compile(r"/v1/tasks(/[^/]+/examples)?")  # the routes that read a table
DIGITS = 18  # of a length, at most
WITHOUT_USE = 1_000  # bytes of a body where a method changes nothing, and needs none


class ContentTypes:
    """Middleware that answers 415 to a body that is no JSON, nor CSV where a table is read, and to a packed one.

    A page of another site can send a form without asking, and nothing else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http" and scope["method"] not in READING:
            headers = Headers(scope=scope)
            types = ["application/json", *(["text/csv"] if CSV_PATHS.fullmatch(scope["path"]) else [])]
            if not _is_plain(headers) or not _is_of(headers, types):
                detail = f"the body must be {' or '.join(types)} in UTF-8, without Content-Encoding; set Content-Type"
                problem = Problem(415, detail, headers={"Accept": ", ".join(types), "Connection": "close"})
                return await problem.response()(scope, receive, send)
        await self.app(scope, receive, send)


def _is_plain(headers: Headers) -> bool:
    return headers.get("content-encoding", "identity").lower() == "identity"


def _is_of(headers: Headers, types: Sequence[str]) -> bool:
    """Whether the content type is one of these, or there is no body."""
    given = headers.getlist("content-type")
    if not given:
        return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    kind, *parameters = (part.strip().lower() for part in given[0].split(";"))
    sets = [value.strip("\"' ") for name, _, value in (one.partition("=") for one in parameters) if name == "charset"]
    return len(given) == 1 and kind in types and all(one in ("utf-8", "utf8") for one in sets)


class WholeBody:
    """Middleware that reads a request's body to its end, and answers 413 to one too large, 408 to one too slow.

    What comes later, such as that the client has gone, is passed on; so are responses, as they come.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            with anyio.fail_after(self.seconds):
                limit = WITHOUT_USE if scope["method"] in READING else self.limit
                body = await _read(Headers(scope=scope), receive, limit)
        except TimeoutError:
            detail = f"the body has not come within {self.seconds:g} seconds; send less at once"
            return await _closing(408, detail).response()(scope, receive, send)
        except Problem as problem:
            return await problem.response()(scope, receive, send)
        except ClientDisconnect:
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replayed, send)


async def _read(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The body. Raises ``Problem`` before or while it is read, and ``ClientDisconnect``."""
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _closing(400, "Content-Length is no whole number; send the number of bytes of the body")
    _refuse_large(int(length[:DIGITS]), limit)
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        size, more = size + len(pieces[-1]), message.get("more_body", False)
        _refuse_large(size, limit)
    return b"".join(pieces)


def _refuse_large(size: int, limit: int) -> None:
    if size > limit:
        raise _closing(413, f"the body has more than {limit:,} bytes; send it in several requests")


def _closing(status: int, detail: str) -> Problem:
    """A refusal after which the rest of the request is not read."""
    return Problem(status, detail, headers={"Connection": "close"})
