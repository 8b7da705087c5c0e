"""What a verb says: results on stdout, everything else on stderr."""

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from abmll.common.errors import one_line


def complain(text: str) -> None:
    """One line on stderr, whatever the text has in it (a name out of a file may hold line breaks or terminal codes)."""
    print(f"abmll: {one_line(text)}", file=sys.stderr)


def announce(text: str) -> None:
    """A line on stderr about what is going on."""
    print(one_line(text), file=sys.stderr)


def quiet_libraries() -> None:
    """Let libraries that quantise models log errors alone.

    transformers imports them where they are installed, wanted or not, and they warn of kernels that a machine lacks,
    of torch's plans for their registrations, and of every input that an 8-bit layer rounds.
    """
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def print_json(value: Any) -> None:
    """A verb's result for other programs, on stdout; ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print("".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text))


def print_text(text: str) -> None:
    """Lines for people, on stdout, with escapes for what a terminal would obey."""
    print("\n".join(map(one_line, text.split("\n"))))


def print_result(result: Mapping[str, Any], facts: Mapping[str, str], quiet: bool, json: bool) -> None:
    """The end of a verb: its result for other programs or, unless it is to be quiet, for people."""
    if json:
        print_json(result)
    elif not quiet:
        print_facts(facts)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people, on stdout."""
    from abmll.experiments.tables import render_table

    print(render_table(headers, rows))


def print_facts(facts: Mapping[str, str]) -> None:
    """A verb's result for people, on stdout: one fact a line, the values below each other."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {one_line(value)}".rstrip())


def in_words(seconds: float) -> str:
    """A duration: "0.8 s", "12 s", "3 min 5 s", "2 h 7 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def count(number: int, noun: str) -> str:
    """A number of things in words: "1 task", "2,000 tasks"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def cut_in_words(number: int, total: int) -> str:
    """How many inputs were too long for the model, of which the middle was left out."""
    return f"{number:,} of {count(total, 'input')} too long for the model, cut in the middle"


def narrator(quiet: bool) -> Callable[[str], None]:
    """``announce``, or its silence."""
    return (lambda text: None) if quiet else announce
