"""What routes share: the service, the tenant, the task that an address names, how long to wait, what a body holds."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from abmll.common.errors import DataError
from abmll.serving.interface import CSV
from abmll.serving.problems import Problem
from abmll.serving.replies import LeftOut
from abmll.serving.service import Service
from abmll.serving.task_changes import Repeat
from abmll.serving.task_store import Labelled, StoredTask
from abmll.serving.wire import AddedExamples, NewTask
from abmll.tasks.columns import find_columns, read_table

Result = TypeVar("Result")
WAIT, LONGEST_WAIT = 30.0, 600.0  # seconds
LONGEST_KEY = 200  # characters
GLANCE = 0.2  # seconds between looks at a job


async def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]


async def _tenant(request: Request) -> str:
    return request.state.tenant


Tenant = Annotated[str, Depends(_tenant)]


def _task(name: str, service: Served, tenant: Tenant) -> StoredTask:
    return service.store.task(tenant, name)


Named = Annotated[StoredTask, Depends(_task)]


PREFER = f"respond-async, or wait=SECONDS, at most {LONGEST_WAIT:g}: then 202 and a job. Otherwise {WAIT:g} seconds"
KEY = f"1 to {LONGEST_KEY} characters: a request that comes twice with the same key is done once"
TIMEOUT = f"seconds that an answer is worth waiting for, at most {LONGEST_WAIT:g}; then 504"


async def _patience(prefer: Annotated[str, Header(alias="Prefer", description=PREFER)] = "") -> float:
    """How many seconds a change may be waited for (RFC 7240: ``Prefer``)."""
    if re.search(r"\brespond-async\b", prefer):
        return 0.0
    found = re.search(r"\bwait=(\d{1,6})\b", prefer)
    return min(float(found[1]), LONGEST_WAIT) if found else WAIT


Patience = Annotated[float, Depends(_patience)]


async def _seconds(
    request_timeout: Annotated[str, Header(alias="Request-Timeout", description=TIMEOUT)] = f"{WAIT:g}",
) -> float:
    """How many seconds an answer is worth waiting for."""
    try:
        seconds = float(request_timeout)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_WAIT:
        raise Problem(400, f"Request-Timeout: must be a number of seconds, above 0 and at most {LONGEST_WAIT:g}")
    return seconds


Seconds = Annotated[float, Depends(_seconds)]


async def _repeat(
    request: Request, key: Annotated[str | None, Header(alias="Idempotency-Key", description=KEY)] = None
) -> Repeat | None:
    """The client's key for a request that may come twice."""
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST_KEY:
        raise Problem(400, f"Idempotency-Key: must have 1 to {LONGEST_KEY} characters")
    asked = f"{request.method} {request.url.path}?{request.url.query}\n".encode() + await request.body()
    return Repeat(key, hashlib.sha256(asked).hexdigest())


Repeated = Annotated[Repeat | None, Depends(_repeat)]


async def while_connected(request: Request, asked: Coroutine[Any, Any, Result]) -> Result:
    """What is asked, given up when the client goes away. Raises ``ClientDisconnect`` then."""
    work, gone = asyncio.ensure_future(asked), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for one in (work, gone):
            one.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class CsvColumns(NamedTuple):
    """The names of a CSV's columns, where they are given."""

    text: str | None
    label: str | None


async def _columns(
    text: Annotated[str | None, Query(description="of a CSV: the column of texts, guessed where not named")] = None,
    label: Annotated[str | None, Query(description="of a CSV: the column of labels, guessed where not named")] = None,
) -> CsvColumns:
    return CsvColumns(text, label)


Columns = Annotated[CsvColumns, Depends(_columns)]


class Given(NamedTuple):
    """Labelled texts of a body, the body where it is JSON, and how many rows of a CSV had no text or no label."""

    pairs: list[tuple[str, str]]
    body: NewTask | AddedExamples | None = None
    empty: int = 0

    def left_out(self, kept: Sequence[Labelled]) -> LeftOut:
        """What of them is in none of the examples that are kept."""
        return LeftOut(self.empty, len(self.pairs) - len(kept))


async def given(request: Request, form: type[NewTask] | type[AddedExamples], columns: CsvColumns) -> Given:
    """The labelled texts of a body: CSV, or JSON of the ``form``.

    Raises ``DataError`` for what cannot be read.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != CSV:
        found = _read_body(await request.json(), form)
        return Given([(one.text, one.label) for one in found.examples], found)
    return await run_in_threadpool(_of_csv, await request.body(), columns)


def _read_body(value: Any, form: type[NewTask] | type[AddedExamples]) -> NewTask | AddedExamples:
    """JSON of that form. Raises ``RequestValidationError``, as the framework does for the bodies that it reads."""
    try:
        return form.model_validate(value)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False, include_input=False)]
        raise RequestValidationError(found) from error


def _of_csv(data: bytes, named: CsvColumns) -> Given:
    """The rows of a CSV that have a text and a label. Raises ``DataError`` where it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "body.csv"
        path.write_bytes(data)
        try:
            table = read_table(path, quiet=True)
            columns = find_columns(table, *named)
            texts, labels = table.texts(columns.text), table.texts(columns.label)
        except DataError as error:
            line = str(error).replace(str(path), "the CSV").replace("(--", "(?")
            line = line.replace("--text NAME", "?text=NAME").replace("--label NAME", "?label=NAME")
            raise DataError(line) from error
    pairs = [(one, own) for one, own in zip(texts, labels, strict=True) if one is not None and own is not None]
    return Given(pairs, None, len(texts) - len(pairs))
