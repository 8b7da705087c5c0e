"""``abmll serve`` before there is a server: what it refuses at once."""

import socket
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from abmll.cli.main import entry
from abmll.common.locks import lock_path


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert entry(["serve", "--store", "store", *flags]) == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_missing_library_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert refusal(capsys) == 'abmll: error: serve: needs uvicorn; run: pip install "abmll[serve]"\n'
    assert not Path("store").exists()


def test_a_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"host, port: cannot listen at 127.0.0.1:{port}" in refusal(capsys, "--port", port)


def test_a_database_that_another_server_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(lock_path(Path("shared.sqlite"))):  # its store is another one
        said = refusal(capsys, "--database", "sqlite:///shared.sqlite")
    assert said.startswith("abmll: error: shared.sqlite: another process is writing there; ")
    assert not Path("shared.sqlite").exists()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_files_of_another_server_are_refused(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = str(tmp_path / "files")
    with FileLock(lock_path(Path(files))):  # its store and its database are others
        assert f"error: {files}: another process is writing there; " in refusal(capsys, "--files", prefix + files)


def test_nobody_else_is_let_in_without_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--token-file" in refusal(capsys, "--host", "0.0.0.0")
