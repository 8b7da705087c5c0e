"""The progress bar that every long command shows."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    steps: Iterable[Any] | int, description: str, unit: str = "step", quiet: bool = False, force: bool = False
) -> "tqdm[Any]":
    """A bar on stderr with the time left, over an iterable or for a number of steps (call ``update`` yourself).

    Args:
        steps: what to iterate over, or how many steps there will be.
        description: shown in front of the bar.
        unit: what a step is; ``"B"`` counts bytes and shows kB, MB.
        quiet: show nothing.
        force: show the bar even where stderr is not a terminal (by default a log file gets no bars).
    """
    hidden = quiet or not (force or sys.stderr.isatty())
    iterable, total = (None, steps) if isinstance(steps, int) else (steps, None)
    return tqdm(
        iterable, desc=description, total=total, unit=unit, unit_scale=unit == "B", disable=hidden, file=sys.stderr
    )
