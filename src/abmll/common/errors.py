"""The errors a user can cause, and the hint that names the nearest known word.

Every one of them carries a single line that says what is wrong, where, and what to do. The command line prints
that line and exits with code 2; a programming mistake is any other exception and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class AbmllError(Exception):
    """Something the user can put right; its text is one line, whatever a name or value in it holds."""

    def __init__(self, text: str = "") -> None:
        super().__init__(one_line(text))


class ConfigError(AbmllError):
    """A setting, flag or configuration key is unknown, malformed or contradicts another one."""


class DataError(AbmllError):
    """A task, suite or example file cannot be used; the text names file and line."""


class InputError(DataError, ValueError):
    """The same of data that comes through scikit-learn's interface, whose tools look for a ``ValueError``."""


class CheckpointError(AbmllError):
    """A saved run, posterior or model is missing, damaged, or belongs to something else."""


class TrainingError(AbmllError):
    """Training cannot go on honestly: a loss term is not finite, or nothing that should move moves."""


class ReportedError(AbmllError):
    """What ended another process of the same run, which reports it itself."""


# As torch says it: the last of sizes that no computer has.
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Storage size calculation overflowed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, torch's included, says that there is not enough memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def one_line(text: str) -> str:
    """The text on one line: other white space as a space, what a terminal would obey or hide as its escape."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape", "surrogatepass").decode()


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'beta'?"``, or an empty string where nothing known is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""
