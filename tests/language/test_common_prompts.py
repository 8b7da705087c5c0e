"""Examples with the same prompt are read as one, and each finds its own options' scores again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from abmll.language.common_prompts import PASS, grouped_by_prompt, join_common_prompts
from abmll.language.encoding import Encoded
from abmll.language.features import FeatureReader
from abmll.language.meter import counted

PROMPT = (5, 6, 7)
LONG = Encoded(tuple(range(10, 30)), ((8,), (9, 9)), None)


def asked(*options: tuple[int, ...], prompt: tuple[int, ...] = PROMPT, start: int = 0) -> Encoded:
    return Encoded(prompt, options, None, start=start)


def test_options_behind_one_prompt_stand_together_in_an_order_of_their_own() -> None:
    examples = [asked((2, 3), (1,)), LONG, asked((1,), (4, 4, 4)), asked((2, 3), (1,), start=1)]
    joined, places = join_common_prompts(examples, 32)
    assert joined == [asked((1,), (2, 3), (4, 4, 4)), LONG, examples[3]]
    assert places == [[(0, 1), (0, 0)], [(1, 0), (1, 1)], [(0, 0), (0, 2)], [(2, 0), (2, 1)]]
    assert join_common_prompts(examples[::-1], 32)[0] == [examples[3], asked((1,), (2, 3), (4, 4, 4)), LONG]


def test_no_sequence_becomes_longer_and_none_has_more_options_than_it_may() -> None:
    examples = [asked((n, n, n), (n, 0)) for n in range(1, 5)]
    joined, places = join_common_prompts(examples, 32)
    assert [len(one) for one in joined] == [6, 6, 6, 6]  # as they are: 3 of the prompt, 2 and 1 of the options
    joined, places = join_common_prompts([*examples, LONG], 5)
    assert [len(one.options) for one in joined] == [5, 3, 2]
    for one, own in zip(examples, places, strict=False):
        assert tuple(joined[number].options[place] for number, place in own) == one.options


def test_an_example_of_too_many_options_stays_as_it_is() -> None:
    examples = [asked((1,), (2,), (3,)), asked((1,), (4,)), asked((2,), (4,))]
    joined, _ = join_common_prompts(examples, 2)
    assert joined == [examples[0], asked((1,), (2,)), asked((4,))]


def test_prompts_that_begin_alike_are_read_apart_where_that_saves_more_than_a_pass() -> None:
    """Prompts of 12 tokens and more that begin with 10 in common, and one without an input that shares 2 of them."""
    bare = Encoded((0, 1, 50, 51), ((8,), (9,)), None)
    for count in (2, PASS // 8 + 1, PASS // 8 + 2):
        prompts = [(*range(10), 60 + number, 61) for number in range(count)]
        alike = [Encoded(prompt, bare.options, None, bare=bare.prompt) for prompt in prompts]
        together, apart = [[0, *range(1, count + 1)]], [list(range(1, count + 1)), [0]]
        saves = 8 * (count - 1) > PASS
        assert grouped_by_prompt([bare, *alike], 2048, packed=True) == (apart if saves else together)
        assert grouped_by_prompt([bare, *alike], 2048, packed=False) == together
        assert grouped_by_prompt(alike, 2048, packed=True) == [list(range(count))]
    assert saves
    [*passes, last] = grouped_by_prompt([bare, *alike], 20, packed=True)
    assert sorted(number for batch in passes for number in batch) == apart[0]
    assert last == [0]


def test_prompts_without_their_input_are_read_once_for_all_options(
    make_scorer: Any, deep_llama: Path, ragged: list[Encoded]
) -> None:
    """The same numbers as of every example by itself, for the tokens of one prompt and of each option once."""
    scorer = make_scorer(deep_llama)
    options = [((11, 12), (13,)), ((13,), (11, 12)), ((14, 15, 16), (13,)), ((17,), (18, 19))]
    examples = [replace(one, options=own, answer=None, bare=PROMPT) for one, own in zip(ragged, options, strict=True)]
    with counted(scorer) as cost:
        found = FeatureReader(scorer, (2, 4)).read(examples)
    behind = {option for own in options for option in own}
    assert cost.tokens == sum(map(len, examples)) + len(PROMPT) + sum(len(option) - 1 for option in behind)
    for number, one in enumerate(examples):
        alone = FeatureReader(scorer, (2, 4)).read([one])
        torch.testing.assert_close(found.hidden[number], alone.hidden[0], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(found.scores[number], alone.scores[0], rtol=2e-5, atol=1e-4)
