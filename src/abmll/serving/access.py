"""Who may ask: tokens, the tenants they belong to, and how often each may.

A token file has a line ``TENANT TOKEN``, or ``TOKEN`` for the tenant ``default``, for each token. Without one there is
one tenant and no token is needed, and then the server listens on this computer alone.
"""

import hashlib
import hmac
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from abmll.common.errors import ConfigError
from abmll.common.files import read_regular
from abmll.serving.bodies import READING
from abmll.serving.hosts import is_loopback
from abmll.serving.problems import Problem

DEFAULT_TENANT = "default"
SHORTEST = 16  # characters of a token: fewer could be guessed
BURST = 10.0  # times the requests of a second that may come at once
OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")  # they tell nothing of any tenant
OPEN_FOLDERS = ("/page/",)
_LARGEST = 1_000_000  # bytes of a token file
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what RFC 6750 lets stand behind "Bearer"
_NEW = "python -c 'import secrets; print(secrets.token_urlsafe())'"


@dataclass(frozen=True)
class Tokens:
    """The SHA-256 of every token, with the tenant that it belongs to."""

    entries: tuple[tuple[bytes, str], ...]

    def tenant(self, token: bytes) -> str | None:
        """Whose token this is, or None. All are compared, each in a time that does not tell how near it came."""
        digest, found = hashlib.sha256(token).digest(), None
        for known, tenant in self.entries:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def read_tokens(path: Path) -> Tokens:
    """The tokens of a file.

    Raises ``ConfigError``, which shows no token, for a file that others may read, and names the line of a token that is
    short, malformed or there twice.
    """
    data = read_regular(path, _LARGEST, "give a file of lines 'TENANT TOKEN'", ConfigError)
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path}: others may read its tokens (mode {mode:o}); run: chmod 600 {path}")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no UTF-8; give a file of lines 'TENANT TOKEN'") from error
    entries: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        tenant, token = _entry(words, f"{path}:{number}")
        digest = hashlib.sha256(token.encode("ascii")).digest()
        if digest in entries:
            raise ConfigError(f"{path}:{number}: this token is there twice; give every one a line of its own")
        entries[digest] = tenant
    if not entries:
        raise ConfigError(f"{path}: has no token; add a line 'TENANT TOKEN', with a token from: {_NEW}")
    return Tokens(tuple(entries.items()))


def _entry(words: list[str], where: str) -> tuple[str, str]:
    """Tenant and token of a line."""
    if len(words) > 2:
        raise ConfigError(f"{where}: has {len(words)} words; write 'TENANT TOKEN' or 'TOKEN'")
    tenant, token = (DEFAULT_TENANT, *words)[-2:]
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(f"{where}: the tenant's name may have 1 to 100 of the characters A-Z a-z 0-9 . _ -")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{where}: the token may have the characters A-Z a-z 0-9 . _ ~ + / = -; take one from: {_NEW}"
        )
    if len(token) < SHORTEST:
        raise ConfigError(f"{where}: the token has fewer than {SHORTEST} characters; take one from: {_NEW}")
    return tenant, token


def refuse_open(host: str, has_tokens: bool) -> None:
    """Raise ``ConfigError`` where anybody in the network could ask, and no token is needed."""
    if not has_tokens and not is_loopback(host):
        raise ConfigError(
            f"host: whoever reaches {host or 'this computer'} could read and change all tasks; name a file of tokens "
            "with --token-file, or listen on 127.0.0.1"
        )


class Authentication:
    """Middleware that puts the tenant into ``request.state.tenant``, and answers 401 to who has none of the tokens."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None) -> None:
        self.app = app
        self.tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or _is_open(scope["method"], scope["path"]):
            return await self.app(scope, receive, send)
        try:
            tenant = DEFAULT_TENANT if self.tokens is None else _tenant(self.tokens, Headers(scope=scope))
        except Problem as problem:
            return await problem.response()(scope, receive, send)
        scope.setdefault("state", {})["tenant"] = tenant
        await self.app(scope, receive, send)


def _is_open(method: str, path: str) -> bool:
    """Whether whoever reaches the server may read this."""
    return method in READING and (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS))


def _tenant(tokens: Tokens, headers: Headers) -> str:
    """Whose request this is. Raises ``Problem``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        challenge = 'Bearer realm="abmll"'
        detail = "this server asks for a token; send the header 'Authorization: Bearer TOKEN'"
        raise Problem(401, detail, headers={"WWW-Authenticate": challenge})
    tenant = tokens.tenant(token.strip().encode("latin-1"))
    if tenant is None:
        challenge = 'Bearer realm="abmll", error="invalid_token"'
        raise Problem(401, "the server does not know this token", headers={"WWW-Authenticate": challenge})
    return tenant


class RateLimit:
    """Middleware that lets each tenant ask so many times a second, ``BURST`` times as many at once, and answers 429.

    Each tenant has a bucket of tokens, which a request takes one of and time fills. It comes behind ``Authentication``:
    what has no tenant is not counted.
    """

    def __init__(self, app: ASGIApp, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self.per_second = per_second
        self.size = max(1.0, BURST * per_second)
        self.clock = clock
        self.buckets: dict[str, tuple[float, float]] = {}  # what is in it, and since when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        tenant = scope.get("state", {}).get("tenant")
        if scope["type"] == "http" and tenant is not None and (wait := self._wait(tenant)) > 0:
            detail = f"more than {self.per_second:g} requests a second; wait {wait} seconds"
            problem = Problem(429, detail, word="rate", headers={"Retry-After": str(wait)})
            return await problem.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _wait(self, tenant: str) -> int:
        """Take one out of the tenant's bucket: 0, or the seconds to wait where it is empty."""
        now = self.clock()
        level, since = self.buckets.get(tenant, (self.size, now))
        level = min(self.size, level + (now - since) * self.per_second)
        taken = level >= 1
        self.buckets[tenant] = (level - 1 if taken else level, now)
        return 0 if taken else math.ceil((1 - level) / self.per_second)
