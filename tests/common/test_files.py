"""Files are whole or absent, whatever goes wrong while they are written."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from abmll.common import files
from abmll.common.errors import AbmllError
from abmll.common.files import atomic_folder, cache_dir, give_usual_modes, sha256_file, write_json, write_text


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ABMLL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "abmll"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/abmll")
    monkeypatch.setenv("ABMLL_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"


def test_writing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    write_json(path, {"é": [1.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1.5, None]}
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused_and_the_old_file_stays(number: float, tmp_path: Path) -> None:
    write_json(tmp_path / "f", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "f", {"loss": number})
    assert (tmp_path / "f").read_text() == "1\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system; choose a folder you may write to"),
        (errno.EIO, "Input/output error; check the path"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(
    code: int, message: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "f"
    write_text(path, "old")
    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(AbmllError, match=f"cannot write {path}: {message}"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(AbmllError, match="cannot write"):
        write_text(tmp_path / "f" / "g", "text")


def test_a_file_in_the_way_of_a_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AbmllError, match=r"cannot write .*run: (Not a directory|File exists)"),
        atomic_folder(tmp_path / "file" / "run"),
    ):
        pytest.fail("was entered")


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_text("text")
        assert folder.parent == path.parent
        assert not path.exists()
    assert (path / "sub" / "f").read_text() == "text"
    assert os.listdir(path.parent) == ["run"]


def test_a_folder_vanishes_when_the_block_fails(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "f").write_text("text")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with atomic_folder(path) as folder:  # an empty folder is in nobody's way
        (folder / "f").write_text("old")
    with pytest.raises(AbmllError, match="exists already"), atomic_folder(path):
        pass
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "g").write_text("new")
    assert os.listdir(path) == ["g"]
    assert os.listdir(tmp_path) == ["run"]


def test_overwriting_that_fails_at_the_end_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "run", os.replace
    path.mkdir()
    (path / "old").write_text("")

    def fail_once(source: Path, target: Path) -> None:
        if target == path and (source / "new").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", fail_once)
    with pytest.raises(AbmllError, match="No space left"), atomic_folder(path, overwrite=True) as folder:
        (folder / "new").write_text("")
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["run"]


def test_errors_inside_the_block(tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match=r"cannot write .*run: No space left"), atomic_folder(tmp_path / "run"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "run"):
        (tmp_path / "missing").read_text()


def test_sha256_of_a_file_longer_than_a_piece(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
@pytest.mark.parametrize("hidden", [0o022, 0o027, 0o077])
def test_files_and_folders_have_the_modes_of_new_ones(hidden: int, tmp_path: Path) -> None:
    before = os.umask(hidden)
    try:
        write_text(tmp_path / "file", "text")
        with atomic_folder(tmp_path / "folder") as target:
            (target / "a").write_text("as usual")
            (target / "b").touch(mode=0o600)  # as some libraries do
            give_usual_modes(target)
    finally:
        os.umask(before)
    made = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files = dict.fromkeys(["file", "folder/a", "folder/b"], 0o666 & ~hidden)
    assert made == {"folder": 0o777 & ~hidden, **files}
