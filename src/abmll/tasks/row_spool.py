"""Rows of many tasks on disk, put there as they come and given back task by task."""

import json
from collections.abc import Iterator
from itertools import chain

from abmll.tasks.rows import Row
from abmll.tasks.spool import Spool

BLOCK = 16  # rows of a task that are written together
WAITING = 100_000  # rows in memory at most, of all tasks, that wait for the others of their block


class RowSpool:
    """The rows of a file that is too large for memory, by the task that they name."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._waiting: dict[str | None, list[Row]] = {}
        self._blocks: dict[str | None, list[tuple[int, int] | list[Row]]] = {}
        self._num_waiting = 0
        self.length = 0

    @property
    def tasks(self) -> list[str | None]:
        """The tasks, in order of appearance; None is that of rows that name none."""
        return list(self._waiting)

    def add(self, task: str | None, row: Row) -> None:
        """Take a row. Raises ``DataError`` where the disk has no room for it."""
        waiting = self._waiting.setdefault(task, [])
        waiting.append(row)
        self.length += 1
        self._num_waiting += 1
        if len(waiting) == BLOCK:
            self._write(task)
        elif self._num_waiting == WAITING:
            for own in [own for own, rows in self._waiting.items() if rows]:
                self._write(own)

    def rows(self, task: str | None) -> Iterator[Row]:
        """The rows of a task, in their order."""
        blocks = (self._read(block) for block in self._blocks.get(task, ()))
        yield from chain(chain.from_iterable(blocks), self._waiting.get(task, ()))

    def _write(self, task: str | None) -> None:
        """Put the rows of a task that wait into a block."""
        rows, self._waiting[task] = self._waiting[task], []
        self._blocks.setdefault(task, []).append(self._written(rows))
        self._num_waiting -= len(rows)

    def _written(self, rows: list[Row]) -> tuple[int, int] | list[Row]:
        """Where the rows lie; the rows themselves, where one holds what JSON has not, such as a date of Parquet."""
        try:
            block = json.dumps(rows).encode()
        except (TypeError, ValueError):
            return rows
        return self._spool.append(block), len(block)

    def _read(self, block: tuple[int, int] | list[Row]) -> list[Row]:
        if isinstance(block, list):
            return block
        return [Row(where, values) for where, values in json.loads(self._spool.read(*block))]
