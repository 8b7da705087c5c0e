"""The command ``abmll``: finds the verb, runs it, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 2 an error the user can put right, 130 interrupted by Ctrl-C. A traceback is the program's defect.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from abmll.cli.console import complain
from abmll.common.errors import AbmllError, ConfigError, nearest


@dataclass(frozen=True)
class Verb:
    """A row of the table of commands; the module of a "module:function" is imported only when the verb runs."""

    summary: str  # its line in the list of commands
    target: str
    fill: str | None = None  # gives a preset's values, see abmll.cli.flags.run_verb


@dataclass(frozen=True)
class Group:
    """A command that has commands of its own."""

    summary: str
    verbs: Mapping[str, Verb]


TASKS = Group(
    "list, show, check and fetch tasks",
    {
        "ls": Verb("list the tasks of a file, folder or suite, or what is at hand", "abmll.cli.listing:ls"),
        "show": Verb("show a task's numbers and its first examples as prompts", "abmll.cli.listing:show"),
        "validate": Verb("check task files, naming file and line of what is wrong", "abmll.cli.listing:validate"),
        "fetch": Verb("download a task collection into the cache", "abmll.cli.listing:fetch"),
        "check-leaks": Verb("refuse a suite whose training and evaluation overlap", "abmll.cli.listing:check_leaks"),
    },
)

COMMANDS: Mapping[str, Verb | Group] = {
    "train": Verb("meta-train an adapter on many tasks", "abmll.cli.train:train", fill="abmll.cli.train:fill"),
    "adapt": Verb("learn a new task from its examples", "abmll.cli.adapt:adapt", "abmll.common.presets:fill"),
    "predict": Verb(
        "answer questions, with probabilities and uncertainty", "abmll.cli.predict:predict", "abmll.common.presets:fill"
    ),
    "evaluate": Verb(
        "adapt to every evaluation task of a suite and measure",
        "abmll.cli.evaluate:evaluate",
        fill="abmll.cli.evaluate:fill",
    ),
    "compare": Verb("methods and seeds on a suite: tables with intervals", "abmll.cli.compare:compare"),
    "tune": Verb("choose every method's settings on validation tasks", "abmll.cli.tune:tune"),
    "export": Verb("write the posterior mean as a PEFT adapter or a merged model", "abmll.cli.export:export"),
    "report": Verb("write one self-contained HTML page about a run", "abmll.cli.report:report"),
    "tasks": TASKS,
    "estimate": Verb("memory, operations and time of a step, from a model's shape", "abmll.cli.estimate:estimate"),
    "demo": Verb("the whole method on real tasks, from download to report", "abmll.cli.demo:demo"),
}


def entry(argv: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default) and return the exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv), COMMANDS, "")
        sys.stdout.flush()
        return code
    except AbmllError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        # Whoever can say where to resume raises the interrupt again with that line as its text.
        complain(f"interrupted{': ' if interrupt.args else ''}{interrupt}")
        return 130
    except BrokenPipeError:
        # The reader (head, a pager) has left.
        _give_up_stdout()
        return 0
    except OSError as error:
        # What a disk refuses where nothing more can be said about it, such as stdout on a full one.
        complain(f"error: {error.filename or 'writing the output'}: {error.strerror or error}")
        _give_up_stdout()
        return 2


def _give_up_stdout() -> None:
    """Python flushes stdout once more at exit: where that cannot be, let it go nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str], commands: Mapping[str, Verb | Group], path: str) -> int:
    """Run the command that `argv` names among `commands`; `path` is what stood before it ("" or "tasks ")."""
    word = argv[0] if argv else "--help"
    if word in ("-h", "--help"):
        print(_overview(commands, path), end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if word == "--version" and not path:
        from abmll._version import __version__

        print(f"abmll {__version__}")
        return 0
    if word not in commands:
        what = "flag" if word.startswith("-") else "command"
        hint = nearest(word, [*commands, "--help", "--version"]) or f" See 'abmll {path}--help'."
        raise ConfigError(f"unknown {what} '{path}{word}'.{hint}")
    command = commands[word]
    if isinstance(command, Group):
        return _dispatch(argv[1:], command.verbs, f"{word} ")

    from abmll.cli.flags import run_verb

    fill = _load(command.fill) if command.fill else None
    return run_verb(_load(command.target), argv[1:], path + word, fill)


def _load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _overview(commands: Mapping[str, Verb | Group], path: str) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    after = [] if path else ["", "abmll --version shows the version."]
    usage = f"usage: abmll {path}COMMAND [options]"
    return "\n".join([usage, "", *lines, "", f"abmll {path}COMMAND --help shows a command's options.", *after, ""])
