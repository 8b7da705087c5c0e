"""What every request passes before anything is done, and what every response tells a browser.

A page of another site that a user has open can send requests to a server on the user's computer. It is known by the
``Host``, ``Origin`` and ``Sec-Fetch-Site`` that browsers set, and stopped at content types that no form can send.
"""

import re
import socket
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abmll.serving.access import Authentication, RateLimit, Tokens
from abmll.serving.bodies import READING, ContentTypes, WholeBody
from abmll.serving.hosts import host_name, is_address
from abmll.serving.limits import ServeConfig
from abmll.serving.problems import Problem

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("", "0.0.0.0", "::")
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
SENT = ("Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Request-Timeout")
SHOWN_HEADERS = ("Location", "Retry-After", "X-Abmll-Version")


def guard(
    app: FastAPI,
    config: ServeConfig,
    host: str,
    tokens: Tokens | None,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
) -> None:
    """Put all of this in front of ``app``; the last one added is the first that a request meets.

    Args:
        host: where the server listens.
        allowed_hosts: names beside that one under which it may be asked for, such as a proxy's.
        allowed_origins: sites whose pages may ask, such as ``https://desk.example``.
    """
    app.add_middleware(WholeBody, limit=round(config.max_body_mb * 1e6), seconds=config.body_seconds)
    app.add_middleware(ContentTypes)
    if config.requests_per_second:
        app.add_middleware(RateLimit, per_second=config.requests_per_second)
    app.add_middleware(Authentication, tokens=tokens)
    app.add_middleware(OwnOrigin, allowed=frozenset(map(_origin, allowed_origins)))
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[_origin(one) for one in allowed_origins],
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=SENT,
            expose_headers=SHOWN_HEADERS,
        )
    app.add_middleware(KnownHost, host=host, allowed=allowed_hosts)
    app.add_middleware(SecurityHeaders)


class SecurityHeaders:
    """Middleware that tells browsers to load nothing from elsewhere, to frame nothing, and to guess no types."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application. What a route has set itself stays."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, with_headers)


class KnownHost:
    """Middleware that answers 421 to a ``Host`` that is none of the server's own.

    A site's name may be made to lead to this computer (DNS rebinding); its pages would be of the same origin then.
    A server that listens everywhere is also asked for by its addresses, which nobody can make lead elsewhere.
    """

    def __init__(self, app: ASGIApp, host: str, allowed: Sequence[str] = ()) -> None:
        self.app = app
        self.any_address = host in EVERYWHERE
        own = (socket.gethostname(), socket.getfqdn()) if self.any_address else (host,)
        self.names = {one.lower().strip("[]").rstrip(".") for one in (*LOOPBACK, *own, *allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http" and not self._is_known(Headers(scope=scope).getlist("host")):
            detail = (
                "the header Host names another server; if it should be this one, name it when the server is started"
            )
            return await Problem(421, detail, word="host").response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _is_known(self, hosts: list[str]) -> bool:
        name = host_name(hosts[0]) if len(hosts) == 1 else ""
        return name in self.names or (self.any_address and is_address(name))


class OwnOrigin:
    """Middleware that answers 403 to what another site's page would change."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str] = frozenset()) -> None:
        self.app = app
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http" and scope["method"] not in READING and not self._is_own(Headers(scope=scope)):
            detail = (
                "this comes from another site's page; name the site as an allowed origin when the server is started"
            )
            return await Problem(403, detail, word="origin").response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        origins = headers.getlist("origin")
        if not origins:  # no browser, or one so old that it says nothing of where a form comes from
            return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        [*others, origin] = origins
        return not others and (origin in self.allowed or _authority(origin) == headers.get("host", "").lower())


def _origin(text: str) -> str:
    """An origin as browsers write it."""
    return text.lower().rstrip("/")


def _authority(origin: str) -> str | None:
    """Name and port of an origin; None for "null" and what is none."""
    match = re.fullmatch(r"https?://([^/@\s]+)", origin.lower())
    return match[1] if match else None
