"""What a database refuses, as errors of one line, and what is tried again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError

from abmll.common.errors import AbmllError

Result = TypeVar("Result")
FULL = ("full", "disk I/O", "No space left")  # words of a disk that takes no more


class StorageError(AbmllError):
    """The database or the files' place refuses, for a reason that is not the asker's; what was asked for has not
    happened. Clients are ``told`` no more of where that is.
    """

    told = "the server's store cannot be used at the moment; ask again later"


class StorageFull(StorageError):
    """The disk takes no more."""

    told = "the server's disk is full; ask again when there is space on it"


class Conflict(StorageError):
    """Another server has written what this transaction would have."""


def once_more(act: Callable[[], Result]) -> Result:
    """What ``act`` gives, whose transaction another server's may have come before: then it finds what that wrote."""
    try:
        return act()
    except Conflict:
        return act()


@contextmanager
def database_errors(where: str) -> Iterator[None]:
    """Turn what the database refuses into an ``AbmllError`` of one line."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = reason_of(error)
        if any(words in reason for words in FULL):
            raise StorageFull(f"{where}: {reason}; free some space, then ask again") from error
        if isinstance(error, IntegrityError):
            raise Conflict(f"{where}: the database says: {reason}") from error
        raise StorageError(f"{where}: the database says: {reason}") from error


def reason_of(error: SQLAlchemyError) -> str:
    """The first line of what a database says."""
    lines = str(error.orig if isinstance(error, DatabaseError) else error).splitlines()
    return lines[0] if lines else type(error).__name__
