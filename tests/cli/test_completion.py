"""Completion scripts: real shells complete the words, where the shell is at hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from abmll.cli.completion import places
from abmll.cli.main import COMMANDS, TASKS, entry

# Stand-ins for the parts of zsh's completion system, which say what they were asked for.
ZSH = """
compdef() { : }
compset() { word=${word#*=} }
_files() { print files }
_describe() { print -rl -- "${(@P)argv[-1]}" }
"""
CASES = [
    (["abmll", ""], [*COMMANDS]),
    (["abmll", "tasks", ""], [*TASKS]),
    (["abmll", "train", "--dtype", ""], ["auto", "bf16", "fp32"]),
    (["abmll", "completion", ""], ["bash", "zsh", "fish"]),
]
FILES = [["abmll", "adapt", ""], ["abmll", "train", "--tasks", ""], ["abmll", "tasks", "show", "x"]]


def run(shell: str, code: str, folder: Path) -> list[str]:
    """What a shell prints, line by line; it must say nothing on stderr."""
    if sys.platform == "win32" or shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    home = {"HOME": str(folder), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run([shell, *flags, "-c", code], capture_output=True, text=True, timeout=60, env=home)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def script(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    """A file with the script for the shell that the test names."""
    assert entry(["completion", request.param]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def in_bash(script: Path, words: list[str], folder: Path) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _abmll"
    return run("bash", f'source {script}; {ask}; printf "%s\\n" "${{COMPREPLY[@]}}"', folder)


def in_zsh(script: Path, words: list[str], folder: Path) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    return run("zsh", f"{ZSH} source {script}; words=({quoted}); CURRENT={len(words)}; _abmll", folder)


def in_fish(script: Path, words: list[str], folder: Path) -> list[str]:
    return run("fish", f"source {script}; complete -C '{' '.join(words)}'", folder)


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes(script: Path, tmp_path: Path) -> None:
    for words, expected in CASES:
        assert in_bash(script, words, tmp_path) == expected
    for words in FILES:
        assert in_bash(script, words, tmp_path) == [""]  # readline then completes names of files
    assert in_bash(script, ["abmll", "ta"], tmp_path) == ["tasks"]
    assert in_bash(script, ["abmll", "train", "--dtype", "=", "b"], tmp_path) == ["bf16"]
    assert in_bash(script, ["abmll", "--v"], tmp_path) == ["--version"]
    assert run("bash", f"source {script}; complete -p abmll", tmp_path) == [
        "complete -o bashdefault -o default -F _abmll abmll"
    ]


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_completes(script: Path, tmp_path: Path) -> None:
    for words, expected in CASES:
        assert [line.partition(":")[0] for line in in_zsh(script, words, tmp_path)] == expected
    for words in FILES:
        assert in_zsh(script, words, tmp_path) == ["files"]
    assert in_zsh(script, ["abmll", "train", "--dtype=b"], tmp_path) == ["auto", "bf16", "fp32"]
    assert "--max-steps" in " ".join(in_zsh(script, ["abmll", "train", "--"], tmp_path))


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes(script: Path, tmp_path: Path) -> None:
    for words, expected in CASES:
        assert {line.partition("\t")[0] for line in in_fish(script, words, tmp_path)} == {*expected}
    (tmp_path / "own.csv").touch()
    assert any("own.csv" in line for line in in_fish(script, ["abmll", "train", "--tasks", f"{tmp_path}/"], tmp_path))
    flags = {line.partition("\t")[0] for line in in_fish(script, ["abmll", "train", "--"], tmp_path)}
    assert {"--max-steps", "--no-instruction"} <= flags


def test_every_command_and_every_shown_flag_has_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    found = {place.path: place for place in places(COMMANDS)}
    assert {*COMMANDS} <= found.keys()
    assert {f"tasks {name}" for name in TASKS} <= found.keys()
    for path, place in found.items():
        assert entry([*path.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in place.flags)


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "abmll: error: completion: SHELL is 'tcsh'; use 'bash', 'zsh' or 'fish'\n"
