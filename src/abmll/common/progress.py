"""The progress that every long command shows on stderr: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


class _Lines:
    """A file for tqdm that keeps one of its updates every 15 seconds, as a line; there is no first and no last one."""

    def __init__(self) -> None:
        self.next = time.monotonic() + SECONDS_BETWEEN_LINES

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and time.monotonic() >= self.next:
            self.next = time.monotonic() + SECONDS_BETWEEN_LINES
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Every line is flushed when it is written."""


def progress(steps: Iterable[Any] | int, description: str, unit: str = "step", quiet: bool = False) -> "tqdm[Any]":
    """Progress with the time left, over an iterable or for a number of steps (call ``update`` yourself).

    On a terminal it is a bar. Elsewhere, such as in a log file, it is at most a line every 15 seconds: description,
    steps done of how many, time left.

    Args:
        steps: what to iterate over, or how many steps there will be.
        description: stands in front.
        unit: what a step is; ``"B"`` counts bytes and shows kB, MB.
        quiet: show nothing.
    """
    iterable, total = (None, steps) if isinstance(steps, int) else (steps, None)
    common: dict[str, Any] = {"desc": description, "total": total, "unit": unit, "unit_scale": unit == "B"}
    if quiet or sys.stderr.isatty():
        return tqdm(iterable, **common, disable=quiet, file=sys.stderr)
    form = "{desc}: {n_fmt}/{total_fmt} {unit}, {remaining} left"
    return tqdm(iterable, **common, file=_Lines(), mininterval=0, miniters=1, bar_format=form)
