"""Jobs and answers in the database."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, delete, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from abmll.common.errors import AbmllError
from abmll.serving.tables import ANSWERS, JOBS, TASKS, VERSIONS, reading, writing
from abmll.serving.task_store import NoSuchTask, find_task, newest_job

UNFINISHED = ("waiting", "running")
AT_ONCE = 500  # texts in one statement
SPARE = 1000  # answers above the limit before the oldest are deleted


class NoSuchJob(AbmllError):
    """There is no job of that name."""


class JobStore:
    """What was to be learned, and what became of it."""

    def __init__(self, engine: Engine, where: str) -> None:
        self.engine = engine
        self.where = where

    def job(self, tenant: str, job: str) -> "Row[Any]":
        """A job of a tenant's, with the name of its task. Raises ``NoSuchJob``."""
        chosen = select(JOBS, TASKS.c.name.label("task_name"), TASKS.c.how).join(TASKS)
        with reading(self.engine, self.where) as db:
            row = db.execute(chosen.where(JOBS.c.id == job, JOBS.c.tenant == tenant)).first()
        if row is None:
            raise NoSuchJob(f"there is no job '{job[:40]}'")
        return row

    def unfinished(self, task: int | None = None) -> "list[Row[Any]]":
        """Jobs that are to be done, of one task or of all, in the order in which they were asked for."""
        chosen = select(JOBS, TASKS.c.how).join(TASKS).where(JOBS.c.state.in_(UNFINISHED)).order_by(JOBS.c.created)
        with reading(self.engine, self.where) as db:
            return list(db.execute(chosen if task is None else chosen.where(JOBS.c.task == task)))

    def newest(self, task: int) -> "Row[Any]":
        """The job that a task was last changed by. Raises ``NoSuchTask``."""
        with reading(self.engine, self.where) as db:
            row = db.execute(newest_job(task)).first()
        if row is None:
            raise NoSuchTask("this task has been deleted")
        return row

    def set_state(self, job: str, state: str, error: str | None = None) -> None:
        """Note how far a job is, and that its version was not learned where it was not."""
        with writing(self.engine, self.where) as db:
            db.execute(update(JOBS).where(JOBS.c.id == job).values(state=state, error=error))
            own = select(JOBS.c.task, JOBS.c.version).where(JOBS.c.id == job)
            of_job = tuple_(VERSIONS.c.task, VERSIONS.c.version).in_(own)
            of_version = "waiting" if state in UNFINISHED else "failed"
            db.execute(update(VERSIONS).where(of_job, VERSIONS.c.document.is_(None)).values(state=of_version))


class AnswerStore:
    """Answers that were given: what was said of a text once is said again, to the last digit.

    Texts are known by their hash. The ``limit`` newest answers are kept.
    """

    def __init__(self, engine: Engine, where: str, limit: int) -> None:
        self.engine = engine
        self.where = where
        self.limit = limit
        self.since = 0  # answers that were written since the oldest were last deleted

    def given(self, task: int, version: int, texts: Sequence[str]) -> dict[str, str]:
        """The answers to those of the texts that have one, by text."""
        with reading(self.engine, self.where) as db:
            return _given(db, task, version, texts)

    def keep(self, task: int, version: int, answers: Mapping[str, str]) -> dict[str, str]:
        """Keep answers by text, and tell what is kept: where there was one already, that stays.

        Raises ``NoSuchTask`` where the task was deleted meanwhile.
        """
        if not self.limit:
            return dict(answers)
        build = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
        of = {"task": task, "version": version}
        rows = [of | {"digest": digest(text), "answer": answer} for text, answer in answers.items()]
        with writing(self.engine, self.where) as db:
            find_task(db, task)
            db.execute(build(ANSWERS).on_conflict_do_nothing(), rows)
            self.since += len(rows)
            if self.since > SPARE:
                self.since = 0
                newest = db.execute(select(func.max(ANSWERS.c.number))).scalar_one()
                db.execute(delete(ANSWERS).where(ANSWERS.c.number <= newest - self.limit))
            return dict(answers) | _given(db, task, version, list(answers))


def _given(db: Connection, task: int, version: int, texts: Sequence[str]) -> dict[str, str]:
    digests = {digest(text): text for text in texts}
    found: dict[str, str] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), AT_ONCE):
        chosen = ANSWERS.c.digest.in_(wanted[start : start + AT_ONCE])
        key = and_(ANSWERS.c.task == task, ANSWERS.c.version == version, chosen)
        rows = db.execute(select(ANSWERS.c.digest, ANSWERS.c.answer).where(key))
        found |= {digests[row.digest]: row.answer for row in rows}
    return found


def digest(text: str) -> str:
    """What a text is known by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
