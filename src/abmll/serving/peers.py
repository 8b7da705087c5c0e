"""Several servers over one database: each says that it lives, and does the jobs of those that say so no more."""

import logging
import threading

from sqlalchemy import Engine, delete, insert, update

from abmll.common.errors import AbmllError
from abmll.serving.database import SERVERS, clock, writing
from abmll.serving.jobs import Jobs

LOG = logging.getLogger("abmll.serving")
BEAT = 3.0  # seconds between two words
FORGOTTEN = 86_400.0  # seconds after which a server that has ended is no longer listed


class Peers:
    """The ``server`` among those that share its database. Where that is SQLite it has none, and nothing is done."""

    def __init__(self, engine: Engine, where: str, server: str) -> None:
        self.engine = engine
        self.where = where
        self.server = server
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        self.are_there = engine.dialect.name != "sqlite"
        if self.are_there:
            self.speak()

    def speak(self) -> None:
        """Say that this server lives."""
        with writing(self.engine, self.where) as db:
            now = clock(db)
            if db.execute(update(SERVERS).where(SERVERS.c.id == self.server).values(seen=now)).rowcount == 0:
                db.execute(insert(SERVERS).values(id=self.server, seen=now))
            db.execute(delete(SERVERS).where(SERVERS.c.seen < now - FORGOTTEN))

    def watch(self, jobs: Jobs) -> None:
        """Speak again and again, and do the jobs that others have left."""
        if self.are_there:
            self.thread = threading.Thread(target=self._beat, args=(jobs,), name="abmll-peers", daemon=True)
            self.thread.start()

    def leave(self) -> None:
        """Say that this server ends: what it has not done others may do at once."""
        if self.thread is None:
            return
        self.ended.set()
        self.thread.join()
        try:
            with writing(self.engine, self.where) as db:
                db.execute(delete(SERVERS).where(SERVERS.c.id == self.server))
        except AbmllError as error:  # its word will be too old soon
            LOG.warning("the database was not told that this server ends: %s", error)

    def _beat(self, jobs: Jobs) -> None:
        while not self.ended.wait(BEAT):
            try:
                self.speak()
                jobs.look()
                jobs.take()
            except AbmllError as error:  # the database may answer again
                LOG.warning("the other servers were not heard: %s", error)
