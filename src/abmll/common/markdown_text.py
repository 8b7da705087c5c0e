"""Texts of others in Markdown: a name comes out as the text that it is, whatever is in it."""

import re

from abmll.common.errors import one_line

# What opens emphasis, code, links, tags, entities, tables or headings; a "_" within a word opens nothing.
_MARKS = re.compile(r"[\\`*\[\]<>&|~$#]|(?<![^\W_])_|_(?![^\W_])")


def as_text(text: str) -> str:
    """The text on one line, every mark of Markdown and HTML in it escaped."""
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def block(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in the text."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def span(text: str) -> str:
    """The text on one line as code within a line."""
    shown = one_line(text)
    fence = _fence(shown, 1)
    space = " " * (shown != shown.strip("` "))  # of which a reader takes one away on both sides
    return f"{fence}{space}{shown}{space}{fence}"


def _fence(text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))
