"""The database of a server: its tables, and a connection that loses nothing once it has said that it is written.

SQLite by default, in a file of the store's folder; PostgreSQL where several servers share one store.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    extract,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from abmll.common.errors import AbmllError
from abmll.serving.storage_errors import database_errors, reason_of

METADATA = MetaData()
CASCADE = "CASCADE"
IN_ONE_STATEMENT = 500  # values that a condition compares with; SQLite and PostgreSQL take a limited number
WRITES = "abmll_writes"  # of a connection, whether it will
MAKING = 4_201_512_808  # the number of the lock under which the tables are made, on PostgreSQL

# Names in the order of their bytes, whatever language the database is set to.
NAME = String().with_variant(String(collation="C"), "postgresql")

# What the store belongs to: its format, and the language model that its features were read with.
ABOUT = Table("about", METADATA, Column("name", String, primary_key=True), Column("value", Text, nullable=False))

TASKS = Table(
    "tasks",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("name", NAME, nullable=False),
    Column("how", String, nullable=False),  # head or full
    Column("settings", Text, nullable=False),  # JSON: the labels' order, the number of steps
    Column("created", Float, nullable=False),
    UniqueConstraint("tenant", "name"),
    sqlite_autoincrement=True,  # a deleted task's number, which names its files, is never given again
)

# A version has the examples that were added in it or before and had not been removed by then.
EXAMPLES = Table(
    "examples",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.id", ondelete=CASCADE), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("added", Integer, nullable=False),
    Column("removed", Integer),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("task", ForeignKey("tasks.id", ondelete=CASCADE), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String, nullable=False),  # waiting, ready, failed or damaged
    Column("created", Float, nullable=False),
    Column("labels", Text, nullable=False),  # JSON
    Column("num_examples", Integer, nullable=False),
    Column("document", Text),  # JSON: what of the posterior is no tensor
    Column("sha256", String),  # of the file with its tensors
    Column("quality", Text),  # JSON, where it was measured
    Column("error", Text),
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("task", ForeignKey("tasks.id", ondelete=CASCADE), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("kind", String, nullable=False),  # learn, update or relearn
    Column("state", String, nullable=False, index=True),  # waiting, done, failed or cancelled
    Column("error", Text),
    Column("created", Float, nullable=False),
    Column("owner", String),  # the server that does it
)

# The servers that share the database, but for SQLite's, which has one alone.
SERVERS = Table(
    "servers",
    METADATA,
    Column("id", String, primary_key=True),
    Column("seen", Float, nullable=False),  # when it last said that it lives, by the database's clock
)

# What was asked under a key of the client's: the same request again gets the same job.
REPEATS = Table(
    "repeats",
    METADATA,
    Column("tenant", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("digest", String, nullable=False),  # of the request
    Column("task", ForeignKey("tasks.id", ondelete=CASCADE), nullable=False),
    Column("job", String),
    Column("created", Float, nullable=False),
)

ANSWERS = Table(
    "answers",
    METADATA,
    Column("number", Integer, primary_key=True),  # the lowest are the oldest
    Column("task", ForeignKey("tasks.id", ondelete=CASCADE), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String, nullable=False),  # of the text
    Column("answer", Text, nullable=False),  # JSON
    UniqueConstraint("task", "version", "digest"),
)

Index("jobs_of_task", JOBS.c.task, JOBS.c.state)


def connect(url: str, durable: bool = True) -> Engine:
    """The database at ``url``, with its tables.

    ``durable``: what is written is on the disk before the call returns. Otherwise a loss of power, but no killed
    process, may take the last seconds' writes. Raises ``AbmllError`` where it cannot be opened.
    """
    where = shown(url)
    try:
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except ModuleNotFoundError as error:
        raise AbmllError(f"{where}: needs a driver; run: pip install 'abmll[postgres]' ({error})") from error
    except SQLAlchemyError as error:
        raise AbmllError(f"{where}: no database is known by such an address: {reason_of(error)}") from error
    with database_errors(where):
        if engine.dialect.name == "sqlite":
            _prepare(engine, "FULL" if durable else "NORMAL")
        elif not durable:
            event.listen(engine, "connect", _write_later)
        with engine.begin() as db:
            if engine.dialect.name == "postgresql":  # servers that start together make them one after the other
                db.execute(select(func.pg_advisory_xact_lock(MAKING)))
            METADATA.create_all(db)
    return engine


def shown(url: str) -> str:
    """An address as it may be shown: without the password. Raises ``AbmllError`` for what is no address."""
    return _address(url).render_as_string(hide_password=True)


def file_of(url: str) -> Path | None:
    """SQLite's file, which one server alone may have; None for another database. Raises as ``shown``."""
    address = _address(url)
    return Path(address.database) if address.get_backend_name() == "sqlite" and address.database else None


def _address(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise AbmllError("database: give an address such as postgresql+psycopg://USER@HOST/NAME") from error


def _write_later(connection: Any, _record: object) -> None:
    """PostgreSQL without waiting for the disk."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION synchronous_commit = off")
    connection.commit()


def _prepare(engine: Engine, synchronous: str) -> None:
    """SQLite with a log that is written ahead, and transactions that begin where SQLAlchemy says so.

    One that writes takes the right to do so at once: if it took it later, it could have read what is no longer so.
    """

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own way of beginning transactions
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)


@contextmanager
def reading(engine: Engine, where: str) -> Iterator[Connection]:
    """A transaction that reads."""
    with database_errors(where), engine.begin() as db:
        yield db


@contextmanager
def writing(engine: Engine, where: str) -> Iterator[Connection]:
    """A transaction that writes, and that has happened as a whole or not at all."""
    with database_errors(where), engine.execution_options(**{WRITES: True}).begin() as db:
        yield db


def clock(db: Connection) -> float:
    """Seconds by the clock of the database, as those of several servers may differ."""
    if db.dialect.name == "sqlite":
        return time.time()
    return float(db.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one())
