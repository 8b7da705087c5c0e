"""Jobs in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Row, and_, or_, select, tuple_, update

from abmll.common.errors import AbmllError
from abmll.serving.database import ABOUT, JOBS, SERVERS, TASKS, VERSIONS, clock, reading, writing
from abmll.serving.task_store import NoSuchTask, newest_job

WAITING = "waiting"  # of a job that has not ended; whether it runs only its server knows
CANCELLED = "it was cancelled"
LEASE = 20.0  # seconds without a word of a server, after which others do its jobs


class NoSuchJob(AbmllError):
    """There is no job of that name."""


class JobStore:
    """What was to be learned, which ``server`` does it, and what became of it."""

    def __init__(self, engine: Engine, where: str, server: str = "") -> None:
        self.engine = engine
        self.where = where
        self.server = server

    def job(self, tenant: str, job: str) -> "Row[Any]":
        """A job of a tenant's, with the name of its task. Raises ``NoSuchJob``."""
        chosen = select(JOBS, TASKS.c.name.label("task_name"), TASKS.c.how).join(TASKS)
        with reading(self.engine, self.where) as db:
            row = db.execute(chosen.where(JOBS.c.id == job, JOBS.c.tenant == tenant)).first()
        if row is None:
            raise NoSuchJob(f"there is no job '{job[:40]}'")
        return row

    def newest(self, task: int) -> "Row[Any]":
        """The job that a task was last changed by. Raises ``NoSuchTask``."""
        with reading(self.engine, self.where) as db:
            row = db.execute(newest_job(task)).first()
        if row is None:
            raise NoSuchTask("this task has been deleted")
        return row

    def take(self) -> "list[Row[Any]]":
        """Make this server's the unfinished jobs that none does which lives, in the order in which they were asked for.

        With SQLite there is one server alone: what it does not know is of one that has ended.
        """
        with writing(self.engine, self.where) as db:
            db.execute(select(ABOUT.c.name).with_for_update())  # one server at a time
            living = select(SERVERS.c.id).where(SERVERS.c.seen > clock(db) - LEASE)
            is_left = or_(JOBS.c.owner.is_(None), JOBS.c.owner.not_in(living))
            chosen = update(JOBS).where(JOBS.c.state == WAITING, is_left).values(owner=self.server)
            taken = set(db.execute(chosen.returning(JOBS.c.id)).scalars())
            own = select(JOBS, TASKS.c.how).join(TASKS).where(self._is_own()).order_by(JOBS.c.created)
            return [row for row in db.execute(own) if row.id in taken]

    def wanted(self, jobs: Sequence[str]) -> set[str]:
        """Those of the jobs that are this server's to do: no other has taken them, and nobody has cancelled them."""
        chosen = select(JOBS.c.id).where(JOBS.c.id.in_(jobs), self._is_own())
        with reading(self.engine, self.where) as db:
            return set(db.execute(chosen).scalars())

    def cancel(self, job: str) -> bool:
        """Note that a job is not wanted any more, whichever server does it; False where it has ended."""
        return self._change(job, JOBS.c.state == WAITING, state="cancelled", error=CANCELLED)

    def again(self, job: str) -> bool:
        """Make a job that has failed or was cancelled this server's to do."""
        chosen = JOBS.c.state.in_(("failed", "cancelled"))
        return self._change(job, chosen, state=WAITING, error=None, owner=self.server)

    def end(self, job: str, state: str, error: str | None = None) -> bool:
        """Note what became of a job, where it is still this server's."""
        return self._change(job, self._is_own(), state=state, error=error)

    def _change(self, job: str, chosen: Any, **values: Any) -> bool:
        """Change a job, and note that its version was not learned where it was not; False for one not so chosen."""
        own = select(JOBS.c.task, JOBS.c.version).where(JOBS.c.id == job)
        of_version = and_(tuple_(VERSIONS.c.task, VERSIONS.c.version).in_(own), VERSIONS.c.document.is_(None))
        state = WAITING if values["state"] == WAITING else "failed"
        with writing(self.engine, self.where) as db:
            if db.execute(update(JOBS).where(JOBS.c.id == job, chosen).values(**values)).rowcount == 0:
                return False
            db.execute(update(VERSIONS).where(of_version).values(state=state))
        return True

    def _is_own(self) -> Any:
        return and_(JOBS.c.state == WAITING, JOBS.c.owner == self.server)
