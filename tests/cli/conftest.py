"""A workspace with a trained run, an adapted posterior and their tasks, and the command as a function."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from abmll.cli.main import entry
from abmll.posterior.threads import one_thread

# The program, for tests that interrupt it. Where tests run in the background, their children would ignore Ctrl-C.
INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from abmll.cli.main import entry; sys.exit(entry())"
)


class Outcome(NamedTuple):
    """What a command leaves behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


class Workspace(NamedTuple):
    """The current folder of a test; every test has its own copy.

    ``tasks/`` has toy0 to toy2, ``toy3.jsonl`` is an unseen task, ``questions.jsonl`` the same without answers,
    ``suite.yaml`` trains on the three and evaluates on the fourth, ``run/`` is trained and ``new/`` adapted.
    """

    root: Path
    model: Path
    train: str  # a training command but for its output folder


def toy_rows(seed: int, size: int = 40) -> list[dict[str, Any]]:
    """Which of two words does the last letter stand for? Another rule for every seed."""
    rng = random.Random(seed)
    rule = {letter: rng.choice(["yes", "no"]) for letter in "abcdefgh"}
    inputs = [f"{seed} {n} " + "".join(rng.choices("abcdefgh", k=5)) for n in range(size)]
    return [{"input": text, "options": ["yes", "no"], "answer": rule[text[-1]]} for text in inputs]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_command(model: Path) -> str:
    sizes = "--inner-steps 2 --per-device-train-batch-size 4 --r 2 --layers-to-transform 1 --dtype fp32"
    sizes += " --target-modules q_proj,v_proj --lr-scheduler-type constant"
    return f"train --model {model} --tasks tasks {sizes}"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():  # so small a model loses more than it gains by a second one
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The workspace that is copied for every test, made once."""
    root = tmp_path_factory.mktemp("workspace")
    for number in range(3):
        write_rows(root / f"tasks/toy{number}.jsonl", toy_rows(number))
    write_rows(root / "toy3.jsonl", toy_rows(3))
    write_rows(root / "questions.jsonl", [{**row, "answer": None} for row in toy_rows(3, 6)])
    (root / "suite.yaml").write_text("name: mine\ntrain: [toy0, toy1, toy2]\nevaluation: [toy3]\n")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(root)
        trained = f"{train_command(tiny_llama)} --max-steps 2 --save-steps 1 --output-dir run --quiet"
        adapted = "adapt toy3.jsonl --theta run --output-dir new --steps 2 --quiet"
        assert [entry(command.split()) for command in (trained, adapted)] == [0, 0]
    return root


@pytest.fixture
def work(made: Path, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the workspace as the current folder, beside an empty cache."""
    root = tmp_path / "work"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ABMLL_DATA", raising=False)
    return Workspace(root, tiny_llama, train_command(tiny_llama))


@pytest.fixture
def abmll(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line, in this process; what the libraries below print counts too. Texts are split at spaces.

    A test says what is different in its command behind it: of a flag that takes a value the last one is given.
    """

    def call(*texts: str | Path) -> Outcome:
        capfd.readouterr()
        code = entry(last_of_each([word for text in texts for word in str(text).split()]))
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


def last_of_each(words: list[str]) -> list[str]:
    """The words without the flags, and their values, that occur again further on."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith(("--", "-o")) and word in rest and not rest[0].startswith("--"):
            rest.pop(0)
        else:
            kept.append(word)
    return kept


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the content of each file, None for each folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(work: Workspace, abmll: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must fail: exit code 2, one line on stderr that has all the fragments, no file touched."""

    def check(command: str, *fragments: str) -> str:
        before = tree(work.root)
        code, out, err = abmll(command, "--quiet")
        assert (code, out) == (2, "")
        assert err.startswith("abmll: error: ")
        assert err.count("\n") == 1
        for fragment in fragments:
            assert fragment in err
        assert tree(work.root) == before
        return err

    return check
