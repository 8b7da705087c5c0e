"""Rows on disk: whole or absent, found by every process, within their bytes, and never wrong."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from abmll.language.activation_store import ActivationStore

WHO = {"model": "test", "depth": 2}


def row(seed: int, length: int = 5) -> torch.Tensor:
    return torch.randn(length, 8, generator=torch.Generator().manual_seed(seed))


def filled(root: Path, *seeds: int) -> ActivationStore:
    """A store with a row for every seed."""
    store = ActivationStore(root, WHO, 10**9)
    for seed in seeds:
        store.put(f"row{seed}", row(seed))
    return store


def files(root: Path) -> list[Path]:
    return sorted(root.glob("activations-*/*.safetensors"))


def assert_has(store: ActivationStore, *seeds: int) -> None:
    for seed in seeds:
        found = store.get(f"row{seed}")
        assert found is not None, seed
        assert torch.equal(found, row(seed))


def test_rows_come_back_from_the_disk(tmp_path: Path) -> None:
    early = ActivationStore(tmp_path, WHO, 10**9)
    assert early.get("row0") is None
    assert_has(filled(tmp_path, 0, 1), 0, 1)
    for store in (early, ActivationStore(tmp_path, WHO, 10**9)):
        assert_has(store, 0, 1)
        assert store.get("row2") is None
    assert [path.stem for path in files(tmp_path)] == ["row0", "row1"]


def test_a_row_of_half_precision_keeps_its_bits(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, WHO, 10**9)
    store.put("row0", row(0).bfloat16())
    found = store.get("row0")
    assert found is not None
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, row(0).bfloat16())


def test_other_computations_have_other_rows(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    assert ActivationStore(tmp_path, WHO | {"depth": 3}, 10**9).get("row0") is None
    assert_has(ActivationStore(tmp_path, dict(reversed(WHO.items())), 10**9), 0)


def test_nothing_is_written_beyond_the_limit_and_what_is_there_stays(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    ActivationStore(tmp_path, WHO | {"depth": 3}, 10**9).put("row0", row(0))  # counts too
    size = files(tmp_path)[0].stat().st_size
    said: list[str] = []
    store = ActivationStore(tmp_path, WHO, 3 * size + 10, said.append)
    store.put("row1", row(1))
    assert (len(files(tmp_path)), said) == (3, [])
    for seed in (2, 3):
        store.put(f"row{seed}", row(seed))
    assert len(files(tmp_path)) == 3
    [line] = said
    assert line.startswith(f"activation_cache_dir {tmp_path} is full; ")
    assert "\n" not in line
    assert_has(store, 0, 1)
    assert store.get("row2") is None


def test_the_folder_is_measured_again_only_after_a_hundredth_of_its_limit(tmp_path: Path) -> None:
    size = len(filled(tmp_path, 0).folder.joinpath("row0.safetensors").read_bytes())
    stores = [ActivationStore(tmp_path, WHO, 1000 * size) for _ in range(2)]
    for seed in range(1, 800):
        stores[seed % 2].put(f"row{seed}", row(seed))
    assert all(0 <= store.allowance < 10 * size for store in stores)
    said: list[str] = []
    for store in stores:
        store.announce = said.append
    for seed in range(800, 1200):
        stores[seed % 2].put(f"row{seed}", row(seed))
    assert 1000 - 20 <= len(files(tmp_path)) <= 1000 + 20
    assert len(said) == 2


def test_a_disk_that_refuses_ends_the_writing_and_not_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    store = ActivationStore(tmp_path, WHO, 10**9, said.append)
    (store.folder / "identity.json").unlink()
    store.folder.rmdir()
    store.folder.write_text("a file in its place")
    for seed in (0, 1):
        store.put(f"row{seed}", row(seed))
        assert store.get(f"row{seed}") is None
    [line] = said
    assert line.startswith("activation_cache_dir: cannot write ")
    assert "\n" not in line


def test_rows_of_a_folder_deleted_meanwhile_are_simply_gone(tmp_path: Path) -> None:
    store, late = filled(tmp_path, 0), ActivationStore(tmp_path, WHO, 10**9)
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    assert late.get("row0") is None
    late.put("row1", row(1))
    assert_has(ActivationStore(tmp_path, WHO, 10**9), 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_in_the_place_of_a_row_is_not_waited_for(tmp_path: Path) -> None:
    store = filled(tmp_path, 0)
    (store.folder / "row0.safetensors").unlink()
    os.mkfifo(store.folder / "row0.safetensors")
    assert store.get("row0") is None
    store.put("row0", row(0))
    assert_has(store, 0)


@pytest.mark.parametrize("damage", ["short", "empty", "header", "other", "data"])
def test_a_damaged_row_is_never_read_and_is_replaced(damage: str, tmp_path: Path) -> None:
    store = filled(tmp_path, 0, 1)
    path = store.folder / "row0.safetensors"
    data = bytearray(path.read_bytes())
    path.unlink()  # the file may be mapped: never write into it
    if damage == "data":
        data[-3] ^= 1
    elif damage == "header":
        data[20] ^= 0xFF
    path.write_bytes({"short": data[:-7], "empty": b"", "other": b"\x02\0\0\0\0\0\0\0{}"}.get(damage, bytes(data)))
    assert store.get("row0") is None
    assert not path.exists()
    assert_has(store, 1)
    store.put("row0", row(0))
    assert_has(ActivationStore(tmp_path, WHO, 10**9), 0, 1)


def test_a_damaged_row_that_cannot_be_deleted_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 0)
    [path] = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)

    def forbidden(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "no", str(path))

    monkeypatch.setattr(Path, "unlink", forbidden)
    for _ in range(2):
        assert store.get("row0") is None
    assert path.exists()


def test_several_may_write_and_read_at_once(tmp_path: Path) -> None:
    def work(start: int) -> None:
        """Rows that overlap with those of others, in a store of its own."""
        store = ActivationStore(tmp_path, WHO, 10**9)
        for seed in range(start, start + 12):
            if store.get(f"row{seed}") is None:
                store.put(f"row{seed}", row(seed))
            assert_has(store, seed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [0, 3, 3, 6]))
    assert_has(ActivationStore(tmp_path, WHO, 10**9), *range(18))
    assert not list(tmp_path.glob("activations-*/.*"))
