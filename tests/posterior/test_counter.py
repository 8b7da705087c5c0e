"""Philox against its authors' vectors, and the normal numbers that are made of it."""

import math

import pytest
import torch
from torch import Tensor

from abmll.posterior.counter import MULTIPLIERS, ROUNDS, WEYL, WORD, new_key, normals, philox

# Random123, tests/kat_vectors: philox4x32 10, counter, key, result.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
KEY = torch.tensor([11, 22])


def words(values: list[int]) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], wanted: list[int]) -> None:
    assert [int(word) for word in philox(words(counter), words(key))] == wanted


def by_python(counter: list[int], key: list[int]) -> list[int]:
    """The same with Python's numbers, which have no end."""
    one, two, three, four = counter
    first, second = key
    for _ in range(ROUNDS):
        a, b = MULTIPLIERS[0] * one, MULTIPLIERS[1] * three
        one, two, three, four = (b >> 32) ^ two ^ first, b & WORD, (a >> 32) ^ four ^ second, a & WORD
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return [one, two, three, four]


def test_many_blocks_at_once() -> None:
    drawn = torch.randint(WORD + 1, (6, 500), generator=torch.Generator().manual_seed(3))
    found = torch.stack(philox(drawn[:4].unbind(), drawn[4:].unbind()))
    wanted = [by_python(column[:4], column[4:]) for column in drawn.mT.tolist()]
    assert found.mT.tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_standard_normal_and_independent(dtype: torch.dtype) -> None:
    count = 60 * 41 * 17 * 22
    [drawn] = normals(KEY, [(60, 41, 17, 22)], dtype)
    assert drawn.dtype == dtype
    flat = drawn.double().flatten().sort().values
    ranks = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert float((torch.special.ndtr(flat) - ranks).abs().max()) < 1.95 / math.sqrt(count)  # Kolmogorov, p = .001
    assert abs(float(flat.pow(4).mean()) - 3.0) < 4 * math.sqrt(96 / count)
    assert float(flat.abs().max()) > 4.5
    for axis in range(4):
        for steps in (1, 2, 3):  # neighbours, within a block and beyond
            ahead = drawn.roll(steps, axis)
            for power in (1, 2):
                own, other = (one.double().pow(power).flatten() for one in (drawn, ahead))
                correlation = float(torch.corrcoef(torch.stack([own, other]))[0, 1])
                assert abs(correlation) < 4 / math.sqrt(count)


def test_longer_axes_begin_with_shorter_ones() -> None:
    [one, two] = normals(KEY, [(2, 3, 5, 6), (3, 2, 4, 7)], torch.float64)
    [longer, also] = normals(KEY, [(2, 4, 9, 11), (5, 3, 4, 9)], torch.float64)
    assert torch.equal(longer[:, :3, :5, :6], one)
    assert torch.equal(also[:3, :2, :, :7], two)


def test_every_number_is_another() -> None:
    parts = [
        *normals(KEY, [(3, 2, 5, 6), (2, 1, 4, 7)], torch.float64),
        *normals(KEY + 1, [(4, 3, 2, 8)], torch.float64),
    ]
    whole = torch.cat([part.flatten() for part in parts])
    assert len(whole.unique()) == len(whole)


def test_a_key_is_the_generators_next_numbers() -> None:
    generator = torch.Generator().manual_seed(5)
    one, two = new_key(generator), new_key(generator)
    assert torch.equal(one, new_key(torch.Generator().manual_seed(5)))
    assert not torch.equal(one, two)
    many = torch.stack([new_key(generator) for _ in range(200)])
    assert 0 <= int(many.min()) < 2**28
    assert 15 * 2**28 < int(many.max()) <= WORD


def test_the_largest_and_the_smallest_words_are_finite() -> None:
    from abmll.posterior.counter import _box_muller

    ends = torch.tensor([0, WORD])
    for dtype in (torch.float32, torch.float64):
        one, two = _box_muller(ends, ends.flip(0), dtype)
        assert torch.isfinite(torch.stack([one, two])).all()
        assert float(one.abs().max()) == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)
