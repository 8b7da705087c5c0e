"""Tasks, their examples and versions in the database: what is known of them.

What changes them is in ``task_changes``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, and_, delete, func, insert, or_, select, update

from abmll.common.errors import AbmllError
from abmll.serving.database import ABOUT, EXAMPLES, JOBS, TASKS, VERSIONS, reading, writing
from abmll.serving.storage_errors import once_more

FORMAT = "abmll-store-1"
READY = "ready"  # of a version


class NoSuchTask(AbmllError):
    """There is no task of that name, or no such version of it."""


class Labelled(NamedTuple):
    """A labelled example of a task, and the version since which it is one."""

    text: str
    label: str
    version: int = 0


@dataclass(frozen=True)
class StoredTask:
    """A task without its versions."""

    id: int
    tenant: str
    name: str
    how: str
    settings: Mapping[str, Any]
    created: float

    @property
    def label_order(self) -> list[str] | None:
        """The labels from the lowest to the highest, where they have an order."""
        return self.settings.get("label_order")

    @classmethod
    def of(cls, row: "Row[Any]") -> "StoredTask":
        """The task in a row of the table."""
        return cls(row.id, row.tenant, row.name, row.how, json.loads(row.settings), row.created)


class TaskStore:
    """All tasks of all tenants; what a method has written is on the disk when it returns.

    ``server`` does what is accepted here. Raises ``AbmllError`` where the database refuses.
    """

    def __init__(self, engine: Engine, where: str, server: str = "") -> None:
        self.engine = engine
        self.where = where
        self.server = server
        self.keys_seen = 0.0  # when it was last looked for keys of requests that are too old

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that reads."""
        return reading(self.engine, self.where)

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that writes."""
        return writing(self.engine, self.where)

    def claim(self, belongs_to: Mapping[str, str]) -> None:
        """Note what the store belongs to. Raises ``AbmllError`` where it belongs to something else."""
        wanted = {"format": FORMAT, **belongs_to}
        found = once_more(lambda: self._about(wanted))
        for name, value in wanted.items():
            if found.get(name) != value:
                bare = " (it has none: 'abmll serve none')" if found.get("theta") == "" else ""
                raise AbmllError(
                    f"{self.where}: was made with another {name} ({found.get(name)}, not {value}); serve it with the "
                    f"same model and theta{bare}, or choose another --store"
                )

    def _about(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """What the store belongs to: ``wanted``, where that was not noted yet."""
        with self.writing() as db:
            found: dict[str, str] = {row.name: row.value for row in db.execute(select(ABOUT))}
            if not found:
                db.execute(insert(ABOUT), [{"name": name, "value": value} for name, value in wanted.items()])
        return found or dict(wanted)

    def task(self, tenant: str, name: str) -> StoredTask:
        """Raises ``NoSuchTask``."""
        with self.reading() as db:
            row = db.execute(select(TASKS).where(TASKS.c.tenant == tenant, TASKS.c.name == name)).first()
        if row is None:
            raise NoSuchTask(f"there is no task '{name}'")
        return StoredTask.of(row)

    def by_id(self, task_id: int) -> StoredTask:
        """Raises ``NoSuchTask``."""
        with self.reading() as db:
            return find_task(db, task_id)

    def tasks(self, tenant: str, after: str = "", limit: int = 100) -> list[StoredTask]:
        """A tenant's tasks in the order of their names, behind the name ``after``."""
        chosen = select(TASKS).where(TASKS.c.tenant == tenant, TASKS.c.name > after).order_by(TASKS.c.name)
        with self.reading() as db:
            return [StoredTask.of(row) for row in db.execute(chosen.limit(limit))]

    def number(self, tenant: str | None = None) -> int:
        """How many tasks there are, of one tenant or of all."""
        chosen = select(func.count()).select_from(TASKS)
        with self.reading() as db:
            return db.execute(chosen if tenant is None else chosen.where(TASKS.c.tenant == tenant)).scalar_one()

    def delete(self, task: StoredTask) -> None:
        """Delete a task with all that belongs to it, but for its files."""
        with self.writing() as db:
            db.execute(delete(TASKS).where(TASKS.c.id == task.id))

    def examples(self, task: StoredTask, version: int | None = None) -> list[Labelled]:
        """The examples of a version, None: the newest, in the order in which they came."""
        with self.reading() as db:
            rows = db.execute(examples_of(task.id, newest_version(db, task) if version is None else version))
            return [Labelled(row.text, row.label, row.added) for row in rows]

    def counts(self, task: StoredTask, version: int) -> dict[str, int]:
        """How many examples of each label a version has, by label."""
        rows = examples_of(task.id, version).order_by(None).with_only_columns(EXAMPLES.c.label, func.count())
        with self.reading() as db:
            found = [tuple(row) for row in db.execute(rows.group_by(EXAMPLES.c.label))]
        return dict(sorted(found))

    def versions(self, task: StoredTask) -> "list[Row[Any]]":
        """All versions, the newest first. Raises ``NoSuchTask``."""
        chosen = select(VERSIONS).where(VERSIONS.c.task == task.id).order_by(VERSIONS.c.version.desc())
        with self.reading() as db:
            found = list(db.execute(chosen))
        if not found:
            raise NoSuchTask(f"there is no task '{task.name}'")
        return found

    def new_labels(self, task: StoredTask, version: int) -> list[str]:
        """The labels that a version has and the one before has not; those of a first version are not new."""
        chosen = select(VERSIONS.c.version, VERSIONS.c.labels).where(
            VERSIONS.c.task == task.id, VERSIONS.c.version.in_((version - 1, version))
        )
        with self.reading() as db:
            labels = {row.version: set(json.loads(row.labels)) for row in db.execute(chosen)}
        return sorted(labels[version] - labels[version - 1]) if len(labels) == 2 else []

    def version(self, task: StoredTask, version: int | None = None) -> "Row[Any]":
        """One version, None: the newest that was learned. Raises ``NoSuchTask``."""
        chosen = select(VERSIONS).where(VERSIONS.c.task == task.id).order_by(VERSIONS.c.version.desc()).limit(1)
        if version is None:
            chosen = chosen.where(VERSIONS.c.document.is_not(None))
        else:
            chosen = chosen.where(VERSIONS.c.version == version)
        with self.reading() as db:
            row = db.execute(chosen).first()
        if row is None or row.document is None:
            what = "has not been learned yet" if version is None else f"has no learned version {version}"
            raise NoSuchTask(f"task '{task.name}' {what}")
        return row

    def learned(self, task: StoredTask, version: int, write: Callable[[], None], **values: Any) -> bool:
        """Note that a version was learned, after ``write`` has written its files; False where it was learned before.

        Others who learn the same wait meanwhile, so that what is noted belongs to what is written. Raises
        ``NoSuchTask`` where the task has been deleted; nothing is written then.
        """
        key = and_(VERSIONS.c.task == task.id, VERSIONS.c.version == version)
        with self.writing() as db:
            row = db.execute(select(VERSIONS.c.state).where(key).with_for_update()).first()
            if row is None:
                raise NoSuchTask(f"there is no task '{task.name}'")
            if row.state == READY:
                return False
            write()
            db.execute(update(VERSIONS).where(key).values(**values, state=READY, error=None))
        return True

    def is_learned(self, task: StoredTask, version: int) -> bool:
        """Whether a version has been learned, and was not found to be damaged since."""
        key = and_(VERSIONS.c.task == task.id, VERSIONS.c.version == version, VERSIONS.c.state == READY)
        with self.reading() as db:
            return db.execute(select(VERSIONS.c.version).where(key)).first() is not None

    def set_version(self, task: StoredTask, version: int, **values: Any) -> None:
        """Change columns of a version."""
        key = and_(VERSIONS.c.task == task.id, VERSIONS.c.version == version)
        with self.writing() as db:
            db.execute(update(VERSIONS).where(key).values(**values))


def in_order(labels: Sequence[str], order: Sequence[str] | None) -> list[str]:
    """The labels in their order, or as they are where they have none."""
    return [label for label in order if label in labels] if order else list(labels)


def find_task(db: Connection, task_id: int) -> StoredTask:
    """The task of that number. Raises ``NoSuchTask``."""
    row = db.execute(select(TASKS).where(TASKS.c.id == task_id)).first()
    if row is None:
        raise NoSuchTask("this task has been deleted")
    return StoredTask.of(row)


def newest_version(db: Connection, task: StoredTask) -> int:
    """The number of the newest version, learned or not. Raises ``NoSuchTask``."""
    found = db.execute(select(func.max(VERSIONS.c.version)).where(VERSIONS.c.task == task.id)).scalar_one()
    if found is None:
        raise NoSuchTask(f"there is no task '{task.name}'")
    return found


def newest_job(task_id: int) -> Any:
    """The query of the job that a task was last changed by."""
    return select(JOBS).where(JOBS.c.task == task_id).order_by(JOBS.c.version.desc()).limit(1)


def examples_of(task_id: int, version: int) -> Any:
    """The query of a version's examples, in the order in which they came."""
    is_left = or_(EXAMPLES.c.removed.is_(None), EXAMPLES.c.removed > version)
    of_version = EXAMPLES.c.task == task_id, EXAMPLES.c.added <= version, is_left
    return select(EXAMPLES).where(*of_version).order_by(EXAMPLES.c.id)
