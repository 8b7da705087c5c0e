"""What changes a task: each change is a new version with its examples, and a job that learns it, in one transaction.

So an example that a client has been told is there is there, whenever the process ends; the job is done after the next
start.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from abmll.common.errors import AbmllError, DataError
from abmll.serving.database import EXAMPLES, IN_ONE_STATEMENT, JOBS, REPEATS, TASKS, VERSIONS
from abmll.serving.storage_errors import once_more
from abmll.serving.task_store import Labelled, StoredTask, TaskStore, examples_of, find_task, newest_job, newest_version
from abmll.tasks.types import MAX_OPTIONS

DAY, HOUR = 86_400.0, 3_600.0  # seconds that a key is kept at least, and between two looks for those that are older


class NameTaken(AbmllError):
    """There is a task of that name already."""


class OtherRequest(AbmllError):
    """A key that says that a request was made before came with another request."""


class TooMany(AbmllError):
    """More examples or tasks than there may be."""


class Repeat(NamedTuple):
    """A client's key for a request that may come twice, and a hash of what it asks."""

    key: str
    digest: str


class Accepted(NamedTuple):
    """What became of a request that changes a task: the job that learns it, None where there was nothing new."""

    task: StoredTask
    job: str | None
    version: int


def create(
    store: TaskStore,
    tenant: str,
    name: str,
    how: str,
    settings: Mapping[str, Any],
    examples: Sequence[Labelled],
    repeat: Repeat | None = None,
    limit: int | None = None,
) -> Accepted:
    """A new task, whose first version is to be learned.

    Raises ``NameTaken``, ``TooMany`` where the tenant has ``limit`` tasks already, ``OtherRequest``.
    """
    return once_more(lambda: _created(store, tenant, name, how, settings, examples, repeat, limit))


def _created(
    store: TaskStore,
    tenant: str,
    name: str,
    how: str,
    settings: Mapping[str, Any],
    examples: Sequence[Labelled],
    repeat: Repeat | None,
    limit: int | None,
) -> Accepted:
    with store.writing() as db:
        # In this order: who sees the name that the same request has taken at another server sees its key too.
        named = db.execute(select(TASKS.c.id).where(TASKS.c.tenant == tenant, TASKS.c.name == name)).first()
        if (before := _repeated(db, tenant, repeat)) is not None:
            return before
        if named is not None:
            raise NameTaken(f"there is a task '{name}' already; add examples to it, or choose another name")
        number = db.execute(select(func.count()).where(TASKS.c.tenant == tenant)).scalar_one()
        if limit is not None and number >= limit:
            raise TooMany(f"there are {number:,} tasks already; delete some first")
        values = {"tenant": tenant, "name": name, "how": how, "settings": json.dumps(settings)}
        db.execute(insert(TASKS).values(**values, created=time.time()))
        found = db.execute(select(TASKS).where(TASKS.c.tenant == tenant, TASKS.c.name == name)).one()
        task = StoredTask.of(found)
        _add(db, task, 1, {one.text: one.label for one in examples})
        return _accept(db, store, task, 1, "learn", repeat)


def change(
    store: TaskStore,
    task: StoredTask,
    added: Sequence[Labelled] = (),
    removed: Set[str] = frozenset(),
    repeat: Repeat | None = None,
    limit: int | None = None,
) -> Accepted:
    """A new version with these examples more, or those with such texts less.

    A text that is there already with another label gets the new one. Where nothing changes there is no new version;
    the job of the newest is told where it has not done its work, so that who asks again is not left without it.
    Raises ``TooMany`` where more than ``limit`` examples would be left, ``DataError`` where they could not be learned,
    ``OtherRequest``, ``NoSuchTask``; nothing is changed then.
    """
    return once_more(lambda: _changed(store, task, added, removed, repeat, limit))


def _changed(
    store: TaskStore,
    task: StoredTask,
    added: Sequence[Labelled],
    removed: Set[str],
    repeat: Repeat | None,
    limit: int | None,
) -> Accepted:
    with store.writing() as db:
        version = _next_version(db, task)
        if (before := _repeated(db, task.tenant, repeat)) is not None:
            return before
        present = {row.text: row for row in db.execute(examples_of(task.id, version - 1))}
        wanted = {one.text: one.label for one in added}
        new = {text: label for text, label in wanted.items() if text not in present or present[text].label != label}
        gone = [present[text].id for text in {*new, *removed} if text in present]
        if not new and not gone:
            newest = db.execute(newest_job(task.id)).one()
            _remember(db, store, task, newest.id, repeat)
            return Accepted(task, None if newest.state == "done" else newest.id, version - 1)
        left = {text: row.label for text, row in present.items() if text not in removed} | new
        if limit is not None and len(left) > limit:
            raise TooMany(
                f"a task has at most {limit:,} examples, and this would make {len(left):,}; remove some first"
            )
        check_labels(set(left.values()), task.label_order)
        for start in range(0, len(gone), IN_ONE_STATEMENT):
            chosen = EXAMPLES.c.id.in_(gone[start : start + IN_ONE_STATEMENT])
            db.execute(update(EXAMPLES).where(chosen).values(removed=version))
        _add(db, task, version, new)
        return _accept(db, store, task, version, "update", repeat)


def check_labels(labels: Set[str], order: Sequence[str] | None) -> None:
    """Raise ``DataError`` for labels of examples that cannot be learned."""
    if len(labels) < 2:
        have = f"all have the label '{min(labels)}'" if labels else "there would be none"
        raise DataError(f"examples: {have}; examples of at least two labels are needed")
    if len(labels) > MAX_OPTIONS:
        raise DataError(f"examples: have {len(labels)} labels; a task has at most {MAX_OPTIONS}")
    if order is not None and (missing := sorted(labels - set(order))):
        raise DataError(f"label_order: lacks '{missing[0]}'; name every label once, from the lowest to the highest")


def relearn(store: TaskStore, task: StoredTask, repeat: Repeat | None = None) -> Accepted:
    """A new version with the examples of the newest. Raises ``OtherRequest``, ``NoSuchTask``."""

    def act() -> Accepted:
        with store.writing() as db:
            version = _next_version(db, task)
            before = _repeated(db, task.tenant, repeat)
            return before or _accept(db, store, task, version, "relearn", repeat)

    return once_more(act)


def _next_version(db: Connection, task: StoredTask) -> int:
    """The number of the version to come; until the end of the transaction nobody else gets it."""
    # key_share: what refers to the task, such as answers, can be written meanwhile.
    db.execute(select(TASKS.c.id).where(TASKS.c.id == task.id).with_for_update(key_share=True))
    return newest_version(db, task) + 1


def _add(db: Connection, task: StoredTask, version: int, examples: Mapping[str, str]) -> None:
    rows = [{"task": task.id, "text": text, "label": label, "added": version} for text, label in examples.items()]
    if rows:
        db.execute(insert(EXAMPLES), rows)


def _accept(
    db: Connection, store: TaskStore, task: StoredTask, version: int, kind: str, repeat: Repeat | None
) -> Accepted:
    """Note that a version is to be learned, the job of this server's that does it, and the key it was asked under."""
    rows = list(db.execute(examples_of(task.id, version)))
    labels, job = sorted({row.label for row in rows}), uuid.uuid4().hex
    about = {"task": task.id, "version": version, "created": time.time(), "state": "waiting"}
    db.execute(insert(VERSIONS).values(**about, labels=json.dumps(labels), num_examples=len(rows)))
    db.execute(insert(JOBS).values(**about, id=job, tenant=task.tenant, kind=kind, owner=store.server))
    _remember(db, store, task, job, repeat)
    return Accepted(task, job, version)


def _remember(db: Connection, store: TaskStore, task: StoredTask, job: str, repeat: Repeat | None) -> None:
    """Note the key that a request came with, and its job; now and then forget the keys of days before."""
    if repeat is None:
        return
    now = time.time()
    values = {"tenant": task.tenant, "task": task.id, "job": job, "created": now}
    db.execute(insert(REPEATS).values(**values, key=repeat.key, digest=repeat.digest))
    if now - store.keys_seen > HOUR:
        store.keys_seen = now
        db.execute(delete(REPEATS).where(REPEATS.c.created < now - DAY))


def _repeated(db: Connection, tenant: str, repeat: Repeat | None) -> Accepted | None:
    """What became of the request when it came before."""
    if repeat is None:
        return None
    row = db.execute(select(REPEATS).where(and_(REPEATS.c.tenant == tenant, REPEATS.c.key == repeat.key))).first()
    if row is None:
        return None
    if row.digest != repeat.digest:
        raise OtherRequest("this Idempotency-Key came with another request before; use a new one")
    version = db.execute(select(JOBS.c.version).where(JOBS.c.id == row.job)).scalar_one()
    return Accepted(find_task(db, row.task), row.job, version)
