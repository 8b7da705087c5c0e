"""Tokens are read from a file that nobody else may read, and say whose request it is and how many there may be."""

import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from abmll.common.errors import ConfigError
from abmll.serving.access import (
    Authentication,
    RateLimit,
    Tokens,
    read_tokens,
    refuse_open,
)
from abmll.serving.hosts import is_loopback

ANNA, BEN = "a" * 20 + "._~+/=-", "b" * 16


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_a_token_file(tmp_path: Path) -> None:
    tokens = read_tokens(token_file(tmp_path, f"# who\nanna {ANNA}  # laptop\n\n{BEN}\r\nanna {'c' * 16}\n"))
    assert tokens.tenant(ANNA.encode()) == tokens.tenant(b"c" * 16) == "anna"
    assert tokens.tenant(BEN.encode()) == "default"
    assert tokens.tenant(b"d" * 16) is None
    assert ANNA.encode() not in repr(tokens).encode()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"anna {ANNA}\nben {ANNA}\n", "tokens:2: this token is there twice"),
        ("anna " + "s" * 15, "tokens:1: the token has fewer than 16"),
        ("an/na " + BEN, "tokens:1: the tenant's name may have"),
        (f"{BEN} b c", "tokens:1: has 3 words"),
        ("anna schlüsselschlüssel", "tokens:1: the token may have the characters"),
        ("# none\n", "tokens: has no token"),
    ],
)
def test_a_token_file_that_is_refused(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_tokens(token_file(tmp_path, text))
    assert line in str(refused.value)
    assert all(word not in str(refused.value) for word in text.split() if len(word) > 12)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_token_file_of_others_is_refused_with_what_mends_it(tmp_path: Path, mode: int) -> None:
    path = token_file(tmp_path, BEN, mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}.*run: chmod 600 {path}"):
        read_tokens(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(tmp_path / "absent")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LocalHost"])
def test_this_computer_alone_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    refuse_open(host, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "myhost", "localhost.example.com"])
def test_an_open_server_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        refuse_open(host, False)
    refuse_open(host, True)


def served(tokens: Tokens | None, rate: RateLimit | None = None) -> TestClient:
    app = FastAPI()

    @app.get("/v1/me")
    @app.get("/metrics")
    @app.get("/readyz")
    @app.get("/page/page.js")
    def me(request: Request) -> str:
        return getattr(request.state, "tenant", "nobody")

    if rate is not None:
        app.add_middleware(RateLimit, per_second=rate.per_second, clock=rate.clock)
    app.add_middleware(Authentication, tokens=tokens)
    return TestClient(app)


def test_whose_request_it_is(tmp_path: Path) -> None:
    client = served(read_tokens(token_file(tmp_path, f"anna {ANNA}\n{BEN}\n")))
    assert client.get("/v1/me", headers={"Authorization": f"Bearer {ANNA}"}).json() == "anna"
    assert client.get("/metrics", headers={"Authorization": f"bearer  {BEN} "}).json() == "default"
    assert client.get("/readyz").json() == client.get("/page/page.js").json() == "nobody"
    for path in ("/metrics", "/v1/me", "/pages", "/readyz/x", "/nowhere"):
        response = client.get(path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer realm="abmll"'
        assert "Authorization: Bearer TOKEN" in response.json()["detail"]
    for value in (f"Bearer {ANNA[:-1]}", f"Bearer {ANNA}x", "Bearer ", f"Basic {ANNA}", ANNA, "Bearer \u00fc"):
        response = client.get("/v1/me", headers={"Authorization": value.encode("latin-1")})  # pyright: ignore
        assert response.status_code == 401, value
        assert ANNA[:-1] not in response.text
    assert client.post("/page/page.js").status_code == client.delete("/").status_code == 401  # open to readers alone
    assert served(None).get("/v1/me").json() == "default"


def test_the_rate_of_each_tenant(tmp_path: Path) -> None:
    now = [100.0]
    rate = RateLimit(FastAPI(), per_second=0.5, clock=lambda: now[0])
    client = served(read_tokens(token_file(tmp_path, f"anna {ANNA}\n{BEN}\n")), rate)
    anna, ben = ({"Authorization": f"Bearer {token}"} for token in (ANNA, BEN))
    assert [client.get("/v1/me", headers=anna).status_code for _ in range(6)] == [200] * 5 + [429]
    response = client.get("/v1/me", headers=anna)
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert client.get("/v1/me", headers=ben).status_code == 200
    assert client.get("/readyz").status_code == 200
    now[0] += 1.9
    assert client.get("/v1/me", headers=anna).headers["retry-after"] == "1"
    now[0] += 0.2  # one came in in two seconds, whatever was refused between
    assert [client.get("/v1/me", headers=anna).status_code for _ in range(2)] == [200, 429]
    now[0] += 1_000  # no more than the burst
    assert [client.get("/v1/me", headers=anna).status_code for _ in range(6)] == [200] * 5 + [429]
