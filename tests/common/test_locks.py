"""One writer a folder: who comes second is told of the first, and the dead hold nothing."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from abmll.common.errors import AbmllError
from abmll.common.files import atomic_folder
from abmll.common.locks import lock_path, sole_writer

HOLDER = """
import sys, time
from pathlib import Path
from abmll.common.locks import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float = 60) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def ended(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_another_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = holder(folder)
    words = rf"^{re.escape(str(folder))}: process {process.pid} on .* is writing there; wait until it is done"
    try:
        with pytest.raises(AbmllError, match=words), sole_writer(folder):
            pytest.fail("was entered")
        with pytest.raises(AbmllError, match=words), atomic_folder(folder):
            pytest.fail("was entered")
        assert not folder.exists()
    finally:
        ended(process)
    with sole_writer(folder):  # who is dead holds nothing
        assert lock_path(folder).exists()
    assert list(tmp_path.iterdir()) == []


def test_another_thread_is_refused_as_well(tmp_path: Path) -> None:
    found = []

    def second() -> None:
        try:
            with sole_writer(tmp_path / "run"):
                found.append("entered")
        except AbmllError as error:
            found.append(str(error))

    with sole_writer(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert f"process {os.getpid()} on" in found[0]


def test_the_holder_may_ask_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with sole_writer(folder):
        with sole_writer(tmp_path / "other" / ".." / "run"), atomic_folder(folder) as inside:
            (inside / "f").write_text("text")
        assert lock_path(folder).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_in_a_folder_beside_which_nobody_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with sole_writer(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert list(folder.iterdir()) == []


def test_patience(tmp_path: Path) -> None:
    process = holder(tmp_path / "run", seconds=0.5)
    began = time.monotonic()
    with sole_writer(tmp_path / "run", patience=60):
        assert time.monotonic() - began < 60
    process.communicate()
    assert process.returncode == 0


def test_an_error_inside_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "run"):
        raise ZeroDivisionError
    with sole_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\xff" * 20_000])
def test_a_lock_that_says_nothing(tmp_path: Path, text: str) -> None:
    process = holder(tmp_path / "run")
    try:
        lock_path(tmp_path / "run").write_text(text, encoding="latin-1")
        with pytest.raises(AbmllError, match="another process is writing there"), sole_writer(tmp_path / "run"):
            pytest.fail("was entered")
    finally:
        ended(process)
