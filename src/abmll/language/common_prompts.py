"""What the prompts of many examples have in common is read once.

Without their input all prompts of a task are the same, whatever the options: they are joined to one example of all
these options. With it they often begin alike, farther than with those without, and then the two are read apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from abmll.language.batch import MAX_BATCH, batches_of_like_length, shared_prefix
from abmll.language.encoding import Encoded

Tokens = tuple[int, ...]
PASS = 40  # tokens that take as long as a pass does by itself


class Joined(NamedTuple):
    """What is to be read, and where in it the options of the examples are."""

    examples: list[Encoded]
    places: list[list[tuple[int, int]]]  # of each given example's options: the number of an example, and of its option


def join_common_prompts(examples: Sequence[Encoded], most: int) -> Joined:
    """Join ``examples`` that differ in their options alone, to no more than ``most`` options of one prompt.

    None becomes longer than the longest was, and one that has more options stays as it is.
    """
    longest = max(map(len, examples))
    groups: dict[tuple[Tokens, int, int], list[int]] = {}
    for number, one in enumerate(examples):
        alone = number if len(one.options) > most else -1
        groups.setdefault((one.prompt, one.start, alone), []).append(number)
    found = Joined([], [[] for _ in examples])
    for (prompt, _, _), members in groups.items():
        own = [examples[number] for number in members]
        if len(own) > 1:
            options = sorted({option for one in own for option in one.options})
            parts = _parts(prompt, options, longest, most)
            own = [replace(own[0], options=part, answer=None) for part in parts]
        there = {
            option: (number, place)
            for number, one in enumerate(own, len(found.examples))
            for place, option in enumerate(one.options)
        }
        found.examples.extend(own)
        for number in members:
            found.places[number].extend(there[option] for option in examples[number].options)
    return found


def grouped_by_prompt(examples: Sequence[Encoded], max_tokens: int, packed: bool) -> list[list[int]]:
    """Which of ``examples`` are read together, in passes of at most ``max_tokens``.

    Where batches are ``packed``, what all prompts of one begin with is read once. Those with an input, which know their
    ``bare`` prompt, are read apart from others where they save more than a pass by it.
    """
    asked = [index for index, one in enumerate(examples) if one.bare]
    groups = [list(range(len(examples)))]
    if packed and asked:
        more = _shared(examples, asked) - _shared(examples, groups[0])
        if more * (min(len(asked), MAX_BATCH) - 1) > PASS:
            groups = [asked, [index for index in groups[0] if not examples[index].bare]]
    return [
        [group[place] for place in batch]
        for group in groups
        for batch in batches_of_like_length(
            [examples[index] for index in group], max_tokens, _shared(examples, group) if packed else 0
        )
    ]


def _shared(examples: Sequence[Encoded], group: Sequence[int]) -> int:
    return shared_prefix([examples[index].prompt for index in group])


def _parts(prompt: Tokens, options: Sequence[Tokens], longest: int, most: int) -> Iterator[tuple[Tokens, ...]]:
    """The options in their order, as many together as may stand behind one prompt."""
    part: list[Tokens] = []
    length = len(prompt)
    for option in options:
        if part and (len(part) == most or length + len(option) - 1 > longest):
            yield tuple(part)
            part, length = [], len(prompt)
        part.append(option)
        length += len(option) - 1
    yield tuple(part)
