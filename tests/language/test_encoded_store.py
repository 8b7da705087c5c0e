"""Tokens on the disk: read back as they were made, made again where they are damaged, never more than so many bytes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from abmll.common.errors import DataError
from abmll.language.encoded import Encoded
from abmll.language.encoded_store import EncodedFile, EncodedPairs, hash_of, kept

EXAMPLES = [Encoded(tuple(range(n + 1)), ((n, 2), (n,)), n % 2, n) for n in range(20)]


class Made:
    """Makes the examples and counts how often."""

    def __init__(self, examples: list[Encoded] = EXAMPLES) -> None:
        self.examples = examples
        self.times = 0

    def __call__(self) -> Iterator[Encoded]:
        self.times += 1
        yield from self.examples


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., tuple[list[Encoded], Made]]:
    """keep(key): the examples under that key, and how often they were made for it."""

    def run(key: str | None = "a", count: int = len(EXAMPLES), **settings: int) -> tuple[list[Encoded], Made]:
        made = Made()
        rows = kept(lambda: key, made, count, tmp_path / "entries", **{"min_examples": 1, **settings})
        assert len(rows) == count
        return [rows[index] for index in range(count)], made

    return run


def test_the_second_time_they_are_read(keep: Callable[..., tuple[list[Encoded], Made]], tmp_path: Path) -> None:
    for times in (1, 0):
        rows, made = keep()
        assert rows == EXAMPLES
        assert made.times == times
    assert keep("b")[1].times == 1
    assert sorted(file.name for file in (tmp_path / "entries").iterdir()) == ["a.safetensors", "b.safetensors"]


def test_an_entry_is_a_safetensors_file_of_all_rows(tmp_path: Path) -> None:
    kept(lambda: "a", Made(), len(EXAMPLES), tmp_path, min_examples=1)
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["packed"].tobytes() == b"".join(example.packed for example in EXAMPLES)
    assert np.diff(tensors["ends"], prepend=0).tolist() == [len(example.packed) // 4 for example in EXAMPLES]


def test_rows_are_read_in_any_order_and_as_a_sequence(tmp_path: Path) -> None:
    rows = kept(lambda: "a", Made(), len(EXAMPLES), tmp_path, min_examples=1)
    assert isinstance(rows, EncodedFile)
    assert [rows[index] for index in (7, 0, -1, 19)] == [EXAMPLES[index] for index in (7, 0, -1, 19)]
    assert rows[3:9:2] == EXAMPLES[3:9:2]
    assert list(rows) == EXAMPLES
    with pytest.raises(IndexError):
        rows[20]


def test_few_examples_and_those_without_a_key_stay_in_memory(
    keep: Callable[..., tuple[list[Encoded], Made]], tmp_path: Path
) -> None:
    for settings in ({"min_examples": 21}, {"key": None}):
        rows, made = keep(**settings)
        assert rows == EXAMPLES
        assert made.times == 1
    assert not (tmp_path / "entries").exists()


@pytest.mark.parametrize("damage", ["emptied", "cut", "longer", "changed", "header", "other"])
def test_a_damaged_entry_is_made_again(
    damage: str, keep: Callable[..., tuple[list[Encoded], Made]], tmp_path: Path
) -> None:
    keep()
    path = tmp_path / "entries" / "a.safetensors"
    whole = path.read_bytes()
    middle = 600
    path.write_bytes(
        {
            "emptied": b"",
            "cut": whole[:-8],
            "longer": whole + b"12345678",
            "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "header": whole[:8] + b"x" + whole[9:],
            "other": b"no safetensors at all " * 99,
        }[damage]
    )
    rows, made = keep()
    assert rows == EXAMPLES
    assert made.times == 1
    assert path.read_bytes() == whole
    assert keep()[1].times == 0


def test_nothing_is_left_of_what_cannot_be_encoded(tmp_path: Path) -> None:
    def fails() -> Iterator[Encoded]:
        yield EXAMPLES[0]
        raise DataError("too long")

    with pytest.raises(DataError, match="too long"):
        kept(lambda: "a", fails, 2, tmp_path, min_examples=1)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_they_are_held_in_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    made = Made()
    assert kept(lambda: "a", made, len(EXAMPLES), blocked / "entries", min_examples=1) == EXAMPLES
    assert blocked.read_text() == "no folder"


def test_the_longest_unused_entries_go_first(keep: Callable[..., tuple[list[Encoded], Made]], tmp_path: Path) -> None:
    for age, key in enumerate("abc"):
        keep(key)
        os.utime(tmp_path / "entries" / f"{key}.safetensors", (age, age))
    size = (tmp_path / "entries" / "a.safetensors").stat().st_size
    assert keep("a")[1].times == 0  # used: no longer the oldest
    keep("d", max_bytes=3 * size)
    assert sorted(file.stem for file in (tmp_path / "entries").iterdir()) == ["a", "c", "d"]


def test_an_entry_in_use_can_be_read_after_it_was_dropped(tmp_path: Path) -> None:
    rows = kept(lambda: "a", Made(), len(EXAMPLES), tmp_path, min_examples=1)
    (tmp_path / "a.safetensors").unlink()
    assert list(rows) == EXAMPLES


def test_hashes_tell_parts_apart() -> None:
    parts = [["ab"], ["a", "b"], ["b", "a"], [["a", "b"]], [["a"], "b"], [None], []]
    assert len({hash_of(some) for some in parts}) == len(parts)
    assert hash_of(iter(["a", ("b", 1)])) == hash_of(["a", ["b", 1]])


def test_pairs_find_the_rows_of_their_task() -> None:
    drawn = [np.array([2, 5]), np.array([], np.int32), np.array([0, 1, 7])]
    pairs = EncodedPairs(drawn, EXAMPLES[:5])
    wanted = {(0, 2): 0, (0, 5): 1, (2, 0): 2, (2, 1): 3, (2, 7): 4}
    assert dict(pairs) == {pair: EXAMPLES[row] for pair, row in wanted.items()}
    assert list(pairs.values()) == EXAMPLES[:5]
    for absent in ((0, 0), (0, 6), (1, 0), (2, 8), (3, 0)):
        assert absent not in pairs
    assert (0, 0) not in EncodedPairs([], [])
