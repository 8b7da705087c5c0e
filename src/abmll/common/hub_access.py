"""How a model hub is asked: huggingface.co, or the one of HF_ENDPOINT."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from fnmatch import fnmatch
from threading import Thread
from typing import TypeVar

from huggingface_hub import DatasetInfo, HfApi, ModelInfo

SECONDS = 5.0  # to be connected, and again to be answered: the libraries themselves try for a minute
ANSWERED = 6.0  # seconds at most until a question is answered

T = TypeVar("T")


def in_time(ask: Callable[[], T]) -> T:
    """What ``ask`` gets from the hub, or its error; ``TimeoutError`` once ``ANSWERED`` seconds have passed.

    The library's own limit is for each address that a name stands for, of which a hub has many, and for each piece of
    an answer; looking the name up has none. A question that is given up goes on in a thread that no process waits for.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # whatever it is, it is raised again where it was asked
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return answer.result(ANSWERED)
    except FutureTimeout as error:  # before Python 3.11 another one than the usual
        raise TimeoutError(f"no answer within {ANSWERED:g} seconds") from error


def hub_api(token: str | None = None) -> HfApi:
    """The hub's interface; without a ``token`` the user's own, if there is one."""
    return HfApi(os.environ.get("HF_ENDPOINT"), token=token)


def sizes_of(info: ModelInfo | DatasetInfo, patterns: Sequence[str]) -> list[int]:
    """The size in bytes of every file of a repository that one of the ``patterns`` names."""
    named = [one for one in info.siblings or [] if any(fnmatch(one.rfilename, own) for own in patterns)]
    return [one.size or 0 for one in named]
