"""Answers in the database: what was said of a text once is said again, to the last digit."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from abmll.serving.database import ANSWERS, IN_ONE_STATEMENT, reading, writing
from abmll.serving.storage_errors import Conflict
from abmll.serving.task_store import NoSuchTask

SPARE = 1000  # answers above the limit before the oldest are deleted


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

    def keep(self, task: int, version: int, answers: Mapping[str, str]) -> Mapping[str, str]:
        """Keep answers by text; where there is one already, that stays. Gives those that are kept.

        Raises ``NoSuchTask`` where the task was deleted meanwhile.
        """
        if not self.limit:
            return answers
        of = {"task": task, "version": version}
        rows = [of | {"digest": digest(text), "answer": answer} for text, answer in answers.items()]
        try:
            return self._kept(task, version, answers, sorted(rows, key=lambda row: row["digest"]))
        except Conflict as error:
            raise NoSuchTask("this task has been deleted") from error

    def _kept(
        self, task: int, version: int, answers: Mapping[str, str], rows: list[dict[str, Any]]
    ) -> Mapping[str, str]:
        """``rows`` are in an order, so that of two servers one waits for the other and not each for the other."""
        build = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
        with writing(self.engine, self.where) as db:
            written = db.execute(build(ANSWERS).on_conflict_do_nothing(), rows).rowcount
            kept = answers if written == len(rows) else _given(db, task, version, list(answers))
            self.since += len(rows)
            if self.since > SPARE:
                self.since = 0
                newest = db.execute(select(func.max(ANSWERS.c.number))).scalar_one()
                db.execute(delete(ANSWERS).where(ANSWERS.c.number <= newest - self.limit))
        return {**answers, **kept}


def _given(db: Connection, task: int, version: int, texts: Sequence[str]) -> dict[str, str]:
    digests = {digest(text): text for text in texts}
    found: dict[str, str] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), IN_ONE_STATEMENT):
        chosen = ANSWERS.c.digest.in_(wanted[start : start + IN_ONE_STATEMENT])
        key = and_(ANSWERS.c.task == task, ANSWERS.c.version == version, chosen)
        rows = db.execute(select(ANSWERS.c.digest, ANSWERS.c.answer).where(key))
        found |= {digests[row.digest]: row.answer for row in rows}
    return found


def digest(text: str) -> str:
    """What a text is known by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
