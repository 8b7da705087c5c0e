"""Folders of tensors: whole or refused, replaced as one, nothing but safetensors and JSON."""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_bytes

from abmll.common import checkpoint
from abmll.common.checkpoint import (
    DOCUMENT,
    LAYOUTS,
    MANIFEST,
    STATE,
    Bundle,
    checkpoints,
    keep_newest,
    latest_checkpoint,
    load_bundle,
    refuse_other_base,
    save_bundle,
)
from abmll.common.errors import AbmllError, CheckpointError

BUNDLE = Bundle(
    {
        "theta": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5, dtype=torch.float64)},
        "optimizer_phi": {},
    },
    {
        "episode": 3,
        "num_tasks": 1,
        "tasks": ["t"],
        "data_sha256": "0" * 64,
        "base_fingerprint": "1" * 64,
        "settings": {"beta": 5e-10},
    },
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint-3"
    save_bundle(path, BUNDLE, STATE)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rehash(folder: Path) -> None:
    """What someone does who edits a checkpoint and makes its manifest fit again."""
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del hashes[MANIFEST]
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}))


def test_round_trip_is_exact(folder: Path) -> None:
    loaded = load_bundle(folder, STATE)
    assert loaded.document == {**BUNDLE.document, "format": "abmll-checkpoint-2"}
    assert loaded.tensors.keys() == BUNDLE.tensors.keys()
    for name, tensor in BUNDLE.tensors["theta"].items():
        assert torch.equal(loaded.tensors["theta"][name], tensor)
        assert loaded.tensors["theta"][name].dtype == tensor.dtype


def test_only_safetensors_and_json(folder: Path) -> None:
    assert sorted(contents(folder)) == [MANIFEST, "optimizer_phi.safetensors", STATE, "theta.safetensors"]
    hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    assert hashes == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != MANIFEST
    }


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("name", ["theta.safetensors", "optimizer_phi.safetensors", STATE])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "does not match its sha256 in manifest.json, so it is damaged"),
        (truncate, "does not match its sha256 in manifest.json, so it is damaged"),
        (Path.unlink, "cannot be read (No such file or directory)"),
    ],
)
def test_damage_is_named_with_its_remedy(folder: Path, name: str, damage: Callable[[Path], None], words: str) -> None:
    damage(folder / name)
    before = contents(folder)
    with pytest.raises(CheckpointError) as caught:
        load_bundle(folder, STATE)
    assert str(caught.value) == f"{folder / name}: {words}; delete the folder to fall back on an older one"
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON ("),
        ('{"sha256": ', "delete the folder to fall back on an older one"),
        ("{}", "is damaged (sha256: Field required); delete the folder"),
        ("[1]", "is not a JSON object; delete the folder"),
        ('{"sha256": 3}', "is damaged (sha256: Input should be an object); delete the folder"),
        ('{"sha256": {}}', "is damaged (sha256: Dictionary should have at least 1 item"),
        ('{"sha256": {"state.json": ""}}', "is damaged (sha256.state.json: String should match pattern"),
        (
            '{"sha256": {"../state.json": "' + "0" * 64 + '"}}',
            "is damaged (sha256.../state.json.[key]: String should match",
        ),
        ('{"sha256": {"other.json": "' + "0" * 64 + '"}}', "does not list state.json; is this another kind of folder?"),
        (
            '{"sha256": {"state.json": "' + "0" * 64 + '"}}',
            "does not list theta.safetensors, so it is damaged; delete the folder",
        ),
    ],
)
def test_damaged_manifest(folder: Path, text: str, words: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint-3/manifest\.json: ") as caught:
        load_bundle(folder, STATE)
    assert words in str(caught.value)


def test_missing_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing; .* is no checkpoint, or damaged"):
        load_bundle(folder, STATE)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing: no such folder"):
        load_bundle(tmp_path / "nothing", STATE)


def test_what_the_manifest_does_not_list_is_not_read(folder: Path) -> None:
    (folder / "stranger.safetensors").write_bytes(b"no tensors at all")
    assert "stranger" not in load_bundle(folder, STATE).tensors


def test_another_kind_of_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not list posterior\.json; is this another kind of folder\?"):
        load_bundle(folder, DOCUMENT)
    document = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(document | {"format": "abmll-posterior-3"}))
    rehash(folder)
    with pytest.raises(CheckpointError, match=r"state\.json: is not of the format 'abmll-checkpoint-2'; delete the"):
        load_bundle(folder, STATE)


@pytest.mark.parametrize(("name", "format"), [(STATE, "abmll-checkpoint-1"), (DOCUMENT, "abmll-posterior-2")])
def test_a_folder_of_version_0_1(tmp_path: Path, name: str, format: str) -> None:
    tensors = {group: {"a": torch.zeros(1)} for group in LAYOUTS[name].tensors}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / MANIFEST).write_text("{}")
    for group, own in tensors.items():
        (tmp_path / "old" / f"{group}.safetensors").write_bytes(to_bytes(own, metadata={"format": "pt"}))
    (tmp_path / "old" / name).write_text(json.dumps({"episode": 3, "format": format}))
    rehash(tmp_path / "old")
    with pytest.raises(
        CheckpointError, match=rf"{name}: was written by abmll 0\.1, which this version does not read; "
    ):
        load_bundle(tmp_path / "old", name)


def test_no_tensors_under_a_matching_hash(folder: Path) -> None:
    (folder / "theta.safetensors").write_bytes(b"nonsense")
    rehash(folder)
    with pytest.raises(CheckpointError, match=r"theta\.safetensors: cannot be read \(.*delete the folder"):
        load_bundle(folder, STATE)


def test_a_failing_write_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, written = contents(folder), []

    def disk_fills_up(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return to_bytes(tensors, metadata)

    monkeypatch.setattr(checkpoint, "save", disk_fills_up)
    with pytest.raises(AbmllError, match=r"cannot write .*checkpoint-3: No space left on device; free some space"):
        save_bundle(folder, BUNDLE, STATE, overwrite=True)
    assert written
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]


def test_an_interrupt_while_writing_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)

    def interrupted(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(folder, BUNDLE, STATE, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(AbmllError, match="checkpoint-3 exists already"):
        save_bundle(folder, BUNDLE, STATE)
    assert contents(folder) == before


def test_another_base_is_refused_by_its_fingerprint() -> None:
    document = {"base_fingerprint": "0" * 64, "settings": {"model": "other"}}
    refuse_other_base(document, ("0" * 64).__eq__, "this", Path("run"))
    with pytest.raises(CheckpointError, match=r"^run: was learned on other, but .* this has other weights; .*--model$"):
        refuse_other_base(document, ("1" * 64).__eq__, "this", Path("run"))


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_bundle(tmp_path / "x", Bundle({}, {"loss": float("nan")}), STATE)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-9", "checkpoint-best", ".checkpoint-11.1-a.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    return tmp_path


def test_checkpoints_are_ordered_by_episode(run: Path) -> None:
    assert list(checkpoints(run)) == [2, 9, 10]
    assert latest_checkpoint(run) == run / "checkpoint-10"


@pytest.mark.parametrize(("limit", "kept"), [(1, [10]), (2, [9, 10]), (3, [2, 9, 10]), (5, [2, 9, 10])])
def test_keep_newest(run: Path, limit: int, kept: list[int]) -> None:
    keep_newest(run, limit)
    assert list(checkpoints(run)) == kept
    assert (run / "checkpoint-best").is_dir()


def test_the_best_is_kept_beside_the_newest(run: Path) -> None:
    oldest, *_, newest = checkpoints(run)
    keep_newest(run, 1, best=oldest)
    assert list(checkpoints(run)) == [oldest, newest]


def test_no_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in it; .* must be started again, with --overwrite"):
        latest_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="nothing: no such run folder"):
        latest_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["theta.safetensors", STATE, "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=rf"{name}: is a link that leads out of its folder; delete"):
        load_bundle(folder, STATE)


def test_a_checkpoint_that_is_a_link_out_of_its_run_is_refused(folder: Path, tmp_path: Path) -> None:
    run, others = tmp_path / "run", tmp_path / "others"
    for place in (run, others):
        place.mkdir()
    folder.rename(others / folder.name)
    (run / folder.name).symlink_to(others / folder.name)
    with pytest.raises(CheckpointError, match=r"checkpoint-3: is a link that leads out of its folder; delete the"):
        load_bundle(latest_checkpoint(run), STATE)
    (run / "checkpoint-4").mkdir()
    keep_newest(run, 1)
    assert [path.name for path in run.iterdir()] == ["checkpoint-4"]
    assert load_bundle(others / folder.name, STATE).document["episode"] == 3  # the link alone was deleted


def test_links_of_the_hubs_cache_and_to_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1234", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    (tmp_path / "linked").symlink_to(snapshot)
    assert load_bundle(tmp_path / "linked", STATE).document["episode"] == 3
    plain = (tmp_path / "models--a--b").rename(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        load_bundle(plain / "snapshots" / "1234", STATE)
