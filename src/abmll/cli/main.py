"""The command ``abmll``: finds the verb, runs it, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 2 an error the user can put right, 130 interrupted by Ctrl-C. A traceback is the program's defect.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NamedTuple

from abmll.cli.console import complain, quiet_libraries
from abmll.common.errors import AbmllError, ConfigError, ReportedError, is_out_of_memory, nearest


class Command(NamedTuple):
    """A row of the table of commands."""

    summary: str  # its line in the list of commands
    target: (
        "str | Mapping[str, Command]"  # the verb, whose module is imported only when it runs; or commands of its own
    )


TASKS: Mapping[str, Command] = {
    "ls": Command("list the tasks of a file, folder or suite, or what is at hand", "abmll.cli.listing:ls"),
    "show": Command("show a task's numbers and its first examples as prompts", "abmll.cli.listing:show"),
    "validate": Command("check task files, naming file and line of what is wrong", "abmll.cli.listing:validate"),
    "fetch": Command("download a task collection into the cache", "abmll.cli.listing:fetch"),
    "check-leaks": Command("refuse a suite whose training and evaluation overlap", "abmll.cli.listing:check_leaks"),
}

COMMANDS: Mapping[str, Command] = {
    "classify": Command("labels and probabilities for a table, from labelled rows", "abmll.cli.classify:classify"),
    "suggest": Command("which unlabelled rows are worth labelling next", "abmll.cli.suggest:suggest"),
    "train": Command("meta-train an adapter on many tasks", "abmll.cli.train:train"),
    "adapt": Command("learn a new task from its examples", "abmll.cli.adapt:adapt"),
    "predict": Command("answer questions, with probabilities and uncertainty", "abmll.cli.predict:predict"),
    "evaluate": Command("adapt to every evaluation task of a suite and measure", "abmll.cli.evaluate:evaluate"),
    "compare": Command("methods and seeds on a suite: tables with intervals", "abmll.cli.compare:compare"),
    "tune": Command("choose every method's settings on validation tasks", "abmll.cli.tune:tune"),
    "export": Command("write the posterior mean as a PEFT adapter or a merged model", "abmll.cli.export:export"),
    "push": Command("put a run or a posterior on a model hub", "abmll.cli.push:push"),
    "serve": Command("learn and answer tasks over HTTP, with a page to teach them on", "abmll.cli.serve:serve"),
    "report": Command("write one self-contained HTML page about a run", "abmll.cli.report:report"),
    "tasks": Command("list, show, check and fetch tasks", TASKS),
    "estimate": Command("memory, operations and time of a step, from a model's shape", "abmll.cli.estimate:estimate"),
    "demo": Command("the whole method on real tasks, from download to report", "abmll.cli.demo:demo"),
    "completion": Command("print a script that completes commands and flags", "abmll.cli.completion:completion"),
}


SEVERAL = ("train", "evaluate", "adapt")  # what torchrun may start in several processes


def entry(argv: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default) and return the exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv), COMMANDS, "")
        sys.stdout.flush()
        return code
    except ReportedError:
        return 2
    except AbmllError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        # Whoever can say where to resume raises the interrupt again with that line as its text.
        complain(f"interrupted{': ' if interrupt.args else ''}{interrupt}")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain("error: not enough memory; choose smaller sizes, such as batch size, rank or length, or another model")
        return 2
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


def _dispatch(argv: list[str], commands: Mapping[str, Command], path: str) -> int:
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
    target = commands[word].target
    if not isinstance(target, str):
        return _dispatch(argv[1:], target, f"{word} ")

    size = os.environ.get("WORLD_SIZE", "")
    if size not in ("", "1") and word not in SEVERAL:
        raise ConfigError(f"WORLD_SIZE is {size}, but '{path}{word}' is for one process; start it by itself")
    from abmll.cli.flags import run_verb
    from abmll.cli.sources import fill
    from abmll.common.allocator import keep_freed_memory

    quiet_libraries()
    keep_freed_memory()
    module, _, name = target.partition(":")
    return run_verb(getattr(import_module(module), name), argv[1:], path + word, fill)


def _overview(commands: Mapping[str, Command], path: str) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    after = [] if path else ["", "abmll --version shows the version."]
    usage = f"usage: abmll {path}COMMAND [options]"
    return "\n".join([usage, "", *lines, "", f"abmll {path}COMMAND --help shows a command's options.", *after, ""])
