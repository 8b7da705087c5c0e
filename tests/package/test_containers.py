"""Dockerfile, compose file and proxy: what they say to ``abmll serve`` it knows, and they know each other."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.cli.main import entry

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
NGINX = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
SERVERS = [name for name in SERVICES if name.startswith("server")]


def instruction(name: str) -> str:
    """The last line of the Dockerfile that begins so, without that."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE.replace("\\\n", ""), flags=re.MULTILINE)[-1]


def settings(flags: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What ``abmll serve`` understands of flags."""
    assert json.loads(instruction("ENTRYPOINT")) == ["abmll", "serve"]
    words = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", flag) for flag in flags]
    assert entry(["serve", *words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_of_the_image(capsys: pytest.CaptureFixture[str]) -> None:
    found = settings(json.loads(instruction("CMD")), capsys)
    assert (found["host"], found["port"], found["token_file"]) == ("0.0.0.0", 8000, "/run/secrets/tokens")
    assert instruction("EXPOSE") == "8000"
    assert found["store"].startswith("/data/")
    assert "8000/readyz" in DOCKERFILE.partition("HEALTHCHECK")[2]


@pytest.mark.parametrize("name", SERVERS)
def test_flags_of_the_servers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    service = SERVICES[name]
    found = settings(service["command"], capsys)
    host = re.fullmatch(r"postgresql\+psycopg://(\w+)@([\w-]+)/(\w+)", found["database"])
    assert host is not None
    user, database, own = host.groups()
    assert SERVICES[database]["environment"]["POSTGRES_USER"] == user
    assert SERVICES[database]["environment"]["POSTGRES_DB"] == own
    assert (found["host"], found["port"]) == ("0.0.0.0", 8000)
    assert found["token_file"] == f"/run/secrets/{service['secrets'][0]}"
    mounted = dict(volume.split(":")[:2] for volume in service["volumes"])
    assert found["files"].startswith(f"{mounted['posteriors']}/")
    for path in mounted.values():
        assert path in instruction("RUN")


def test_names_of_the_compose_file() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
    assert re.findall(r"^\s+server ([\w-]+):8000;$", NGINX, flags=re.MULTILINE) == SERVERS
    assert f"listen {SERVICES['proxy']['ports'][0].split(':')[-1]};" in NGINX


def test_no_secret_is_in_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    taken = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE) for word in line.split()}
    assert taken == {word.removeprefix("./") for word in copied}
    assert re.search(r"password|secret=", DOCKERFILE, flags=re.IGNORECASE) is None
    assert int(re.findall(r"^ARG UID=(\d+)$", DOCKERFILE, flags=re.MULTILINE)[0]) > 0
    assert instruction("USER") == "${UID}"


def test_the_version_of_torch_is_that_of_the_tests() -> None:
    [version] = re.findall(r"torch==([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert f"ARG TORCH={version}\n" in DOCKERFILE


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_settings_of_the_page_for_ray_are_the_examples() -> None:
    page = (ROOT / "docs" / "howto" / "serve-many.md").read_text(encoding="utf-8")
    code = (ROOT / "examples" / "ray_serve.py").read_text(encoding="utf-8")
    own = code.partition("class Settings")[2].partition("@serve")[0]
    fields = set(re.findall(r"^    (\w+): ", own, flags=re.MULTILINE))
    named = set(re.findall(r"\b([a-z_]+)=\S", page.partition("## Ray Serve")[2].partition("## ")[0]))
    assert {"model", "database", "theta", "gpus"} <= named <= fields


def test_the_page_shows_the_proxy_as_it_is() -> None:
    page = (ROOT / "docs" / "howto" / "serve-many.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```nginx\n(.*?)```", page, flags=re.DOTALL)
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert set(lines) <= {line.strip() for line in NGINX.splitlines()}
