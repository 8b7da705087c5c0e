"""Tokens in bytes: read as they were given, equal and hashed by content, small."""

from dataclasses import replace

import pytest
import torch

from abmll.language.encoded import Encoded

EXAMPLES = [
    Encoded((5, 6, 7), ((8, 9), (10,)), 0),
    Encoded((5, 6, 7), ((8,), (9, 10)), 0),
    Encoded((5, 6), ((7, 8, 9), (10,)), 0),
    Encoded((5, 6, 7), ((8, 9), (10,)), 1),
    Encoded((5, 6, 7), ((8, 9), (10,)), None),
    Encoded((5, 6, 7), ((8, 9), (10,)), 0, 3),
    Encoded((5, 6, 7), ((8, 9, 10), ()), 0),
    Encoded((2**31 - 1,), ((0,), (2**31 - 1,), (1,) * 300), 2, 10**6),
]


def test_fields_are_read_as_they_were_given() -> None:
    example = Encoded([5, 6, 7], [[8, 9], [10], [11, 12, 13]], 2, 4)
    assert example.prompt == (5, 6, 7)
    assert example.options == ((8, 9), (10,), (11, 12, 13))
    assert (example.answer, example.truncated) == (2, 4)
    assert len(example) == 3 + 1 + 0 + 2
    assert torch.equal(torch.tensor(example.prompt), torch.tensor([5, 6, 7]))
    assert Encoded((1,), ((2,),), None).answer is None
    assert repr(Encoded((1,), ((2,),), 0)) == "Encoded(prompt=(1,), options=((2,),), answer=0, truncated=0)"


@pytest.mark.parametrize("example", EXAMPLES)
def test_packed_bytes_are_all_of_it(example: Encoded) -> None:
    again = Encoded.of(example.packed)
    assert again == example == Encoded(example.prompt, example.options, example.answer, example.truncated)
    assert hash(again) == hash(example)
    assert len(again) == len(example.prompt) + sum(len(option) - 1 for option in example.options)
    numbers = 4 + len(example.options) + len(example.prompt) + sum(map(len, example.options))
    assert len(example.packed) == 4 * numbers


def test_different_examples_differ() -> None:
    assert len(set(EXAMPLES)) == len(EXAMPLES)
    assert EXAMPLES[0] != ((5, 6, 7), ((8, 9), (10,)), 0)


def test_fields_can_be_replaced_but_not_set() -> None:
    assert replace(EXAMPLES[0], answer=1) == EXAMPLES[3]
    assert replace(EXAMPLES[0], options=((8,), (9, 10))) == EXAMPLES[1]
    with pytest.raises(AttributeError):
        EXAMPLES[0].prompt = (1,)
