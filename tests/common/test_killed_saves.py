"""Saves that are killed or refused at every system call that changes a folder: the old state or the new one, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abmll.common.files import atomic_folder, restore

# Counts what changes the disk, and dies at, or refuses, the Nth of it.
SAVE = """
import errno, os, sys
from pathlib import Path
from abmll.common.files import atomic_folder

folder, number, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
seen, armed = 0, False
WATCHED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}

def step(*_):
    global seen
    if not armed:
        return
    seen += 1
    if seen == number:
        if how == "kill":
            os._exit(137)
        raise OSError(errno.ENOSPC, "No space left on device")

def hook(event, arguments):
    if event in WATCHED or (event == "open" and str(folder.parent) in str(arguments[0])):
        step()

sys.addaudithook(hook)
sync = os.fsync
os.fsync = lambda descriptor: (step(), sync(descriptor))[1]
armed = True
try:
    with atomic_folder(folder, overwrite=True) as target:
        for name in sys.argv[4]:
            (target / name).write_text("new")
except Exception as error:
    armed = False
    print(type(error).__name__)
    sys.exit(2)
armed = False
print(seen)
"""


LETTERS = "abcdefghijklmnopqrstuvwx"
NAMES = ("ab", LETTERS) if os.environ.get("ABMLL_FUZZ") else ("ab",)


def save(folder: Path, number: int, how: str, names: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", SAVE, str(folder), str(number), how, names]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def state(folder: Path) -> dict[str, str]:
    restore(folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("how", ["kill", "refuse"])
def test_at_every_step_the_old_folder_or_the_new_one_is_there(tmp_path: Path, how: str, names: str) -> None:
    old, new = {"a": "old", "z": "old"}, dict.fromkeys(names, "new")
    steps = int(save(tmp_path / "all" / "posterior", 0, "kill", names).stdout)
    assert steps > 8
    found = []
    for number in range(1, steps + 3):
        folder = tmp_path / str(number) / "posterior"
        with atomic_folder(folder) as target:
            for name, text in old.items():
                (target / name).write_text(text)
        done = save(folder, number, how, names)
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 137 if how == "kill" else 2)
        if done.returncode == 2:
            assert done.stdout == "AbmllError\n"
        found.append(state(folder))
        assert found[-1] in (old, new)
        assert done.returncode != 0 or found[-1] == new
        with atomic_folder(folder, overwrite=True) as target:  # the next one clears what was left
            (target / "a").write_text("next")
        assert [path.name for path in folder.parent.iterdir()] == ["posterior"]
    assert old in found
    assert new in found


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    folder = tmp_path / "posterior"
    folder.mkdir()
    (folder / "a").write_text("old")
    folder.rename(tmp_path / ".posterior.replaced")
    assert state(folder) == {"a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]


def test_what_another_writer_has_begun_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "task.v2") as other:
        (other / "a").write_text("half")
        with atomic_folder(tmp_path / "task") as target:
            (target / "a").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task", "task.v2"]
    assert state(tmp_path / "task.v2") == {"a": "half"}


def test_a_folder_that_is_called_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    restore(Path("."))
    with atomic_folder(".") as target:
        (target / "a").write_text("new")
    assert state(tmp_path / "here") == {"a": "new"}
