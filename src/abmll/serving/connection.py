"""Requests to a server of tasks, which are made again where that can do no harm."""

import math
import random
import time
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from abmll.common.errors import AbmllError, ConfigError
from abmll.serving.hosts import is_loopback

if TYPE_CHECKING:
    import httpx

Reply = TypeVar("Reply")

ATTEMPTS = 5
DAMAGED = b"/problems/damaged"  # the type of a problem that no waiting mends
BACKOFF = 0.2  # seconds before the second attempt where the server names none; twice as long before each further one
LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the server says
LONGEST_TIMEOUT = 600.0  # that a server takes
GRACE = 5.0  # seconds that the network may take beside the server


class Refused(AbmllError):
    """A server's refusal, in its words; ``status`` is that of HTTP, such as 404."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Connection:
    """The connections to a server. Raises ``ConfigError`` for what is no address."""

    def __init__(self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0) -> None:
        host = _host(url)
        if not 0 < timeout < math.inf:
            raise ConfigError(f"timeout: is {timeout}; give a number of seconds above 0")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError("token: has characters that no token has; give one of the server's file of tokens")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._library = _http_library()
        self._http: httpx.Client = self._library.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=self._library.Timeout(timeout + GRACE, connect=min(timeout, 10.0)),
            trust_env=not is_loopback(host),  # no proxy leads to this computer
        )

    def close(self) -> None:
        """Close them."""
        self._http.close()

    def read(self, kind: type[Reply], path: str) -> Reply:
        """The reply at an address. Raises as ``ask`` and ``made``."""
        return self.made(kind, self.ask("GET", path))

    def made(self, kind: type[Reply], response: "httpx.Response") -> Reply:
        """A reply out of a response; what it does not know is left out, as a newer server may say more."""
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise AbmllError(
                f"{self.url} does not answer as abmll serve does ({'.'.join(map(str, first['loc']))}: {first['msg']}); "
                "check the address, and that both have the same version"
            ) from error

    def ask(
        self,
        method: str,
        path: str,
        wanted: Any = None,
        headers: Mapping[str, str] | None = None,
        again_is_done: bool = False,
    ) -> "httpx.Response":
        """The response to a request, at most ``ATTEMPTS`` of them. Raises ``AbmllError`` for any that is no success.

        ``again_is_done``: where an attempt got lost, 404 to the next one means that the first was heard.
        """
        given = {"Request-Timeout": f"{min(self.timeout, LONGEST_TIMEOUT):g}", **(headers or {})}
        for attempt in range(1, ATTEMPTS + 1):
            wait = BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            try:
                response = self._http.request(method, path, json=wanted, headers=given)
            except self._library.TimeoutException as error:
                raise AbmllError(
                    f"{self.url} has not answered within {self.timeout:g} seconds; ask for less, or raise timeout"
                ) from error
            except self._library.TransportError as error:
                if attempt == ATTEMPTS:
                    raise AbmllError(f"{self.url} cannot be reached ({error}); is the server running?") from error
            else:
                if response.is_success or (again_is_done and attempt > 1 and response.status_code == 404):
                    return response
                if not _passes(response) or attempt == ATTEMPTS:
                    raise self._refusal(response)
                wait = max(wait, _retry_after(response))
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, response: "httpx.Response") -> Refused:
        """What the server says against it."""
        detail = ""
        if response.headers.get("content-type", "").startswith("application/problem+json"):
            try:
                detail = str(response.json()["detail"])
            except (ValueError, KeyError, TypeError):  # what is in between may have cut it off
                detail = ""
        fallback = f"{self.url} answered {response.status_code} {response.reason_phrase}; check the address"
        return Refused(response.status_code, detail or fallback)


def _passes(response: "httpx.Response") -> bool:
    """Whether the server may answer the same request a little later: it is busy, or out of reach behind a proxy."""
    return response.status_code == 429 or (response.status_code == 503 and DAMAGED not in response.content)


def _host(url: str) -> str:
    """The computer in an address. Raises ``ConfigError`` where there is none."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as half a bracket
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is no address of a server; give one such as http://127.0.0.1:8000")
    return parts.hostname


def _http_library() -> Any:
    """httpx, or httpx2, which has the same interface: huggingface_hub brings one or the other."""
    for name in ("httpx", "httpx2"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise AbmllError("the client needs httpx; run: pip install httpx")


def _retry_after(response: "httpx.Response") -> float:
    """The seconds that a server asks to wait; 0 where it names none."""
    given = response.headers.get("retry-after", "")
    return min(LONGEST_WAIT, float(given)) if given.isascii() and given.isdigit() else 0.0
