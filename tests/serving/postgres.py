"""A PostgreSQL of its own, in a folder that vanishes."""

import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import create_engine, text

USER = "postgres"  # PostgreSQL does not run as root


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, or None."""
    known = [Path(found).parent for found in [shutil.which("initdb")] if found]
    return next((folder for folder in [*known, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]), None)


def lacking() -> str:
    """Why there can be no PostgreSQL here; "" where there can."""
    if sys.platform == "win32" or programs() is None:
        return "PostgreSQL is not installed, or not as this test starts it"
    if os.getuid() == 0:
        import pwd

        if USER not in {entry.pw_name for entry in pwd.getpwall()}:
            return f"PostgreSQL does not run as root, and there is no user '{USER}'"
    return ""


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database server that ends with the block."""
    folder = programs()
    assert folder is not None
    as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
    with TemporaryDirectory() as temporary:
        if as_user:
            shutil.chown(temporary, USER, USER)
        data = f"{temporary}/data"
        quiet: dict[str, Any] = {**as_user, "cwd": temporary, "stdout": subprocess.DEVNULL, "check": True}
        subprocess.run([folder / "initdb", "-D", data, "-U", "abmll", "-A", "trust", "--no-sync"], **quiet)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -k {temporary} -c fsync=off"
        control = [folder / "pg_ctl", "-D", data, "-w", "-l", f"{temporary}/log"]
        subprocess.run([*control, "-o", settings, "start"], **quiet)
        try:
            yield f"postgresql+psycopg://abmll@127.0.0.1:{port}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """The address of a new database on that server, which is gone after the block."""
    name = f"store_{uuid.uuid4().hex[:12]}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as db:
            db.execute(text(f"CREATE DATABASE {name}"))
        yield f"{server}/{name}"
        with engine.connect() as db:
            db.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()
