"""Rows on disk: whole or absent, found by every process, within their bytes, and never wrong."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from abmll.language import activation_store
from abmll.language.activation_store import ActivationStore

WHO = {"model": "test", "depth": 2}


def row(seed: int, length: int = 5) -> torch.Tensor:
    return torch.randn(length, 8, generator=torch.Generator().manual_seed(seed))


def filled(root: Path, *seeds: int) -> ActivationStore:
    """A store with a row for every seed, all in one shard."""
    store = ActivationStore(root, WHO, 10**9)
    for seed in seeds:
        store.put(f"row{seed}", row(seed))
    store.flush()
    return store


def shards(root: Path) -> list[Path]:
    return sorted(root.glob("activations-*/*.safetensors"))


def assert_has(store: ActivationStore, *seeds: int) -> None:
    for seed in seeds:
        found = store.get(f"row{seed}")
        assert found is not None, seed
        assert torch.equal(found, row(seed))


def test_rows_come_back_from_the_disk(tmp_path: Path) -> None:
    assert_has(filled(tmp_path, 0, 1), 0, 1)
    fresh = ActivationStore(tmp_path, WHO, 10**9)
    assert_has(fresh, 0, 1)
    assert fresh.get("row2") is None
    assert len(shards(tmp_path)) == 1


def test_other_computations_have_other_rows(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    assert ActivationStore(tmp_path, WHO | {"depth": 3}, 10**9).get("row0") is None
    assert_has(ActivationStore(tmp_path, dict(reversed(WHO.items())), 10**9), 0)


def test_a_shard_is_written_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_store, "SHARD_BYTES", 2 * row(0).nbytes)
    store = ActivationStore(tmp_path, WHO, 10**9)
    store.put("row0", row(0))
    store.put("row0", row(0))  # counts once
    assert not shards(tmp_path)
    store.put("row1", row(1))
    assert len(shards(tmp_path)) == 1
    assert (store.pending, store.pending_bytes) == ({}, 0)
    store.flush()  # nothing is left to write
    assert len(shards(tmp_path)) == 1
    assert_has(store, 0, 1)


def test_a_row_that_another_process_has_written_is_not_written_again(tmp_path: Path) -> None:
    first, second = ActivationStore(tmp_path, WHO, 10**9), ActivationStore(tmp_path, WHO, 10**9)
    for store in (first, second):
        store.put("row0", row(0))
    second.put("row1", row(1))
    first.flush()
    second.flush()
    kept = [sorted(safe_open(path, "pt").keys()) for path in shards(tmp_path)]
    assert sorted(kept) == [["row0"], ["row1"]]
    assert_has(first, 0, 1)


def test_nothing_is_written_beyond_the_limit_and_what_is_there_stays(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    other = ActivationStore(tmp_path, WHO | {"depth": 3}, 10**9)  # counts too
    other.put("row0", row(0))
    other.flush()
    held = sum(path.stat().st_size for path in shards(tmp_path))
    said: list[str] = []
    store = ActivationStore(tmp_path, WHO, held + shards(tmp_path)[0].stat().st_size, said.append)
    store.put("row1", row(1))
    store.flush()
    assert (len(shards(tmp_path)), said) == (3, [])
    for seed in (2, 3):
        store.put(f"row{seed}", row(seed))
        store.flush()
    assert len(shards(tmp_path)) == 3
    [line] = said
    assert line.startswith(f"activation_cache_dir {tmp_path} is full; ")
    assert "\n" not in line
    assert_has(store, 0, 1)
    assert store.get("row2") is None
    assert store.pending == {}


def test_a_disk_that_refuses_ends_the_writing_and_not_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    store = ActivationStore(tmp_path, WHO, 10**9, said.append)
    (store.folder / "identity.json").unlink()
    store.folder.rmdir()
    store.folder.write_text("a file in its place")
    store.put("row0", row(0))
    store.flush()
    store.put("row1", row(1))
    store.flush()
    [line] = said
    assert line.startswith("activation_cache_dir: cannot write ")
    assert "\n" not in line


def test_rows_of_a_folder_deleted_meanwhile_are_simply_gone(tmp_path: Path) -> None:
    store, late = filled(tmp_path, 0), ActivationStore(tmp_path, WHO, 10**9)
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    assert late.get("row1") is None
    late.put("row1", row(1))
    late.flush()
    assert_has(ActivationStore(tmp_path, WHO, 10**9), 1)


@pytest.mark.parametrize("damage", ["short", "empty", "header", "out_of_distribution", "data"])
def test_a_damaged_shard_is_never_read_and_is_replaced(damage: str, tmp_path: Path) -> None:
    filled(tmp_path, 0, 1)
    [path] = shards(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "data":
        data[-3] ^= 1
    elif damage == "header":
        data[20] ^= 0xFF
    path.write_bytes(
        {"short": data[:-7], "empty": b"", "out_of_distribution": b"\x02\0\0\0\0\0\0\0{}"}.get(damage, bytes(data))
    )
    store = ActivationStore(tmp_path, WHO, 10**9)
    assert sum(store.get(f"row{seed}") is None for seed in (0, 1)) >= 1
    for seed in (0, 1):
        store.put(f"row{seed}", row(seed))
    store.flush()
    assert path not in shards(tmp_path)
    assert_has(store, 0, 1)
    assert_has(ActivationStore(tmp_path, WHO, 10**9), 0, 1)


@pytest.mark.parametrize("seen", [True, False])
def test_a_damaged_row_is_found_in_another_shard_that_has_it(seen: bool, tmp_path: Path) -> None:
    store = filled(tmp_path, 0)
    [path] = shards(tmp_path)
    whole = path.read_bytes()
    (store.folder / "copy.safetensors").write_bytes(whole)
    if seen:
        assert store.get("row1") is None  # a miss looks through the folder
        assert len(store.shards) == 2
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert_has(store, 0)
    assert [one.name for one in shards(tmp_path)] == ["copy.safetensors"]


def test_a_damaged_shard_that_cannot_be_deleted_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 0)
    [path] = shards(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "no", str(path))

    monkeypatch.setattr(Path, "unlink", forbidden)
    store = ActivationStore(tmp_path, WHO, 10**9)
    for _ in range(2):
        assert store.get("row0") is None
    assert path.exists()


def test_only_leftovers_that_no_process_is_writing_are_cleared_away(tmp_path: Path) -> None:
    folder = filled(tmp_path, 0).folder
    old, young = folder / ".old.1-2.tmp", folder / ".young.1-2.tmp"
    for path in (old, young):
        path.write_text("")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert_has(ActivationStore(tmp_path, WHO, 10**9), 0)
    assert (old.exists(), young.exists()) == (False, True)


def test_several_may_write_and_read_at_once(tmp_path: Path) -> None:
    def work(start: int) -> None:
        """Rows that overlap with those of others, a shard each, in a store of its own."""
        store = ActivationStore(tmp_path, WHO, 10**9)
        for seed in range(start, start + 12):
            if store.get(f"row{seed}") is None:
                store.put(f"row{seed}", row(seed))
                store.flush()
            assert_has(store, seed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [0, 3, 3, 6]))
    assert_has(ActivationStore(tmp_path, WHO, 10**9), *range(18))
    assert not list(tmp_path.glob("activations-*/.*"))
