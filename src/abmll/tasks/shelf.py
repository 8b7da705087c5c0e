"""Where tasks are kept that are read one after the other: in memory, and from so many examples on, on disk."""

from abmll.tasks.spool import Spool
from abmll.tasks.types import Task

IN_MEMORY = 250_000  # examples of one reading; those of a sentence take some 100 MB


class Shelf:
    """Takes the tasks of one reading; those that go to disk are used as the others are."""

    def __init__(self) -> None:
        self.room = IN_MEMORY
        self._spool: Spool | None = None

    def put(self, task: Task) -> Task:
        """The task as it is kept. Raises ``DataError`` where the disk has no room for it."""
        self.room -= len(task.examples)
        if self.room >= 0:
            return task
        from abmll.tasks.stored import store  # with NumPy, which takes longer to import than most commands need

        self._spool = self._spool or Spool()
        return store(task, self._spool)
