"""The command as a whole: the table of verbs, exit codes, one line for an error, nothing heavy imported for help."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from abmll import __version__
from abmll.cli import main
from abmll.common.errors import DataError

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "datasets", "pyarrow")


class VerbModule(ModuleType):
    """A module with a verb."""

    verb: Callable[..., int | None]


@pytest.fixture
def verb_module(monkeypatch: pytest.MonkeyPatch) -> VerbModule:
    """An importable module whose `verb` the command "train" runs."""
    module = VerbModule("abmll_test_verbs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    train, tasks = main.Command("trains", f"{module.__name__}:verb"), main.COMMANDS["tasks"]
    monkeypatch.setattr(main, "COMMANDS", {"train": train, "tasks": tasks})
    return module


def raising(error: BaseException) -> Callable[[], int]:
    def verb() -> int:
        """Fail."""
        raise error

    return verb


def test_no_command_shows_the_commands_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.entry([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(f"  {name} " in captured.err for name in main.COMMANDS)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["tasks", "--help"]])
def test_help_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.entry(argv) == 0
    shown = capsys.readouterr().out
    table = main.TASKS if len(argv) == 2 else main.COMMANDS
    assert all(f"  {name} " in shown and command.summary in shown for name, command in table.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.entry(["--version"]) == 0
    assert capsys.readouterr().out == f"abmll {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["qqq"], "unknown command 'qqq'. See 'abmll --help'."),
        (["--versoin"], "unknown flag '--versoin'. Did you mean '--version'?"),
        (["tasks", "shw"], "unknown command 'tasks shw'. Did you mean 'show'?"),
        (["tasks", "show", "--limti", "3"], "tasks show: unknown flag '--limti'. Did you mean '--limit'?"),
    ],
)
def test_unknown_words(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.entry(argv) == 2
    assert capsys.readouterr() == ("", f"abmll: error: {message}\n")


def test_user_errors_are_one_line(verb_module: VerbModule, capsys: pytest.CaptureFixture[str]) -> None:
    verb_module.verb = raising(DataError("bad\nname \x1b[31m: rename it"))
    assert main.entry(["train"]) == 2
    assert capsys.readouterr().err == "abmll: error: bad name \\x1b[31m: rename it\n"


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [
        (KeyboardInterrupt(), "abmll: interrupted\n"),
        (KeyboardInterrupt("go on with --resume"), "abmll: interrupted: go on with --resume\n"),
    ],
)
def test_interrupt(
    interrupt: KeyboardInterrupt, line: str, verb_module: VerbModule, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_module.verb = raising(interrupt)
    assert main.entry(["train"]) == 130
    assert capsys.readouterr().err == line


def test_defects_keep_their_traceback(verb_module: VerbModule) -> None:
    verb_module.verb = raising(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        main.entry(["train"])


def test_exit_code_of_the_verb(verb_module: VerbModule) -> None:
    def verb(*, code: int) -> int:
        """Return it.

        Args:
            code: the exit code
        """
        return code

    verb_module.verb = verb
    assert main.entry(["train", "--code", "7"]) == 7


def test_presets_are_filled_in(verb_module: VerbModule, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(*, preset: str = "default", steps: int = 1) -> None:
        """Print it.

        Args:
            steps: how many
        """
        print(steps)

    verb_module.verb = verb
    assert main.entry(["train", "--preset", "paper-v1"]) == 0
    assert main.entry(["train", "--preset", "paper-v1", "--steps", "2"]) == 0
    assert main.entry(["train"]) == 0
    assert capsys.readouterr().out == "10\n2\n1\n"


def command(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def commands() -> list[list[str]]:
    """Every command line that only shows help."""
    plain = [[name] for name in main.COMMANDS if name != "tasks"]
    return [[], ["tasks"], *plain, *(["tasks", name] for name in main.TASKS)]


@pytest.mark.parametrize("argv", commands(), ids=lambda argv: " ".join(["abmll", *argv]))
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys; from abmll.cli.main import entry\n"
        f"code = entry({[*argv, '--help']!r})\n"
        f"sys.exit(' '.join({{*{HEAVY!r}}} & {{*sys.modules}}) or code)"
    )
    done = command(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: abmll")


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "abmll", "--help"], stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_module_and_exit_code(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "abmll", "tasks", "validate", str(tmp_path / "absent.jsonl")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("abmll: error: ")
    assert done.stderr.count("\n") == 1
