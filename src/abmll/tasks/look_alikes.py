"""Options and labels that differ in nothing that can be seen, of which a model makes two and a person one."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# Control and format characters, variation selectors and blanks that are no white space.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """The text as it looks: composed (NFC), without characters that are not seen, white space as one space."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


@lru_cache(maxsize=1024)  # most tasks have the same few options in every example
def warning_of(options: tuple[str, ...]) -> str | None:
    """What to tell of options that look the same, their characters escaped; None where all can be told apart."""
    pairs = [" and ".join(map(ascii, group)) for group in _groups(options) if len(group) > 1]
    if not pairs:
        return None
    return f"options that look the same: {'; '.join(pairs[:3])}; if they mean the same, make them one"


def _groups(options: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for option in options:
        groups.setdefault(visible(option), []).append(option)
    return list(groups.values())
