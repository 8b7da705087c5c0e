"""Answers in the database: what was said of a text once is said again, to the last digit."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, and_, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from abmll.serving.database import ANSWERS, reading, writing
from abmll.serving.storage_errors import Conflict
from abmll.serving.task_store import NoSuchTask

AT_ONCE = 500  # texts in one statement
SPARE = 1000  # answers above the limit before the oldest are deleted


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Answers by text that wait to be kept, and then those that are."""

    task: int
    version: int
    answers: Mapping[str, str]
    kept: "Future[Mapping[str, str]]" = field(default_factory=Future)


class AnswerStore:
    """Answers that were given. Texts are known by their hash. The ``limit`` newest answers are kept."""

    def __init__(self, engine: Engine, where: str, limit: int) -> None:
        self.engine = engine
        self.where = where
        self.limit = limit
        self.since = 0  # answers that were written since the oldest were last deleted
        self.lock, self.turn = threading.Lock(), threading.Lock()
        self.waiting: list[_Waiting] = []

    def given(self, task: int, version: int, texts: Sequence[str]) -> dict[str, str]:
        """The answers to those of the texts that have one, by text."""
        with reading(self.engine, self.where) as db:
            return _given(db, task, version, texts)

    def keep(self, task: int, version: int, answers: Mapping[str, str]) -> Mapping[str, str]:
        """Keep answers by text; where there is one already, that stays. Gives those that are kept.

        Threads that come together are served by one transaction. Raises ``NoSuchTask`` where the task was deleted
        meanwhile.
        """
        if not self.limit:
            return answers
        own = _Waiting(task, version, answers)
        with self.lock:
            self.waiting.append(own)
        with self.turn:  # another one's turn may have been this one's too
            with self.lock:
                together, self.waiting = self.waiting, []
            if together:
                self._keep(together)
        return own.kept.result()

    def _keep(self, together: Sequence[_Waiting]) -> None:
        """Keep these, and tell each what is kept or why it is not."""
        try:
            kept = self._written(together)
        except Exception as error:  # who waits for it is told
            if isinstance(error, Conflict) and len(together) > 1:  # one of them has lost its task
                for one in together:
                    self._keep([one])
                return
            told = NoSuchTask("this task has been deleted") if isinstance(error, Conflict) else error
            for one in together:
                one.kept.set_exception(told)
            return
        for one, own in zip(together, kept, strict=True):
            one.kept.set_result(own)

    def _written(self, together: Sequence[_Waiting]) -> list[Mapping[str, str]]:
        build = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
        rows = [
            {"task": one.task, "version": one.version, "digest": digest(text), "answer": answer}
            for one in together
            for text, answer in one.answers.items()
        ]
        # In one order, so that of two servers one waits for the other and not each for the other.
        rows.sort(key=lambda row: (row["task"], row["version"], row["digest"]))
        with writing(self.engine, self.where) as db:
            written = db.execute(build(ANSWERS).on_conflict_do_nothing(), rows).rowcount
            kept: list[Mapping[str, str]] = [one.answers for one in together]
            if written < len(rows):
                kept = [{**one.answers, **_given(db, one.task, one.version, list(one.answers))} for one in together]
            self.since += len(rows)
            if self.since > SPARE:
                self.since = 0
                newest = db.execute(select(func.max(ANSWERS.c.number))).scalar_one()
                db.execute(delete(ANSWERS).where(ANSWERS.c.number <= newest - self.limit))
        return kept


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
