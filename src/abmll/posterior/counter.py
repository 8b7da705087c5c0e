"""Random numbers that are a function of a key and of their place, so that a compiled graph can hold them.

A ``torch.Generator`` is a state that changes with every call, which a compiled graph cannot be handed. Here a block of
four numbers is Philox4x32-10 of a key and of the block's place (Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3", SC 2011), by integer arithmetic on tensors: the same bits on every device, compiled or not.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
WORD = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what is added to the key's two words from round to round


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 random bits for the four words of ``counter`` and the two of ``key``, which are broadcast.

    All are int64, from 0 to 2^32 - 1.
    """
    one, two, three, four = counter
    first, second = key
    for _ in range(ROUNDS):
        high_one, low_one = _product(MULTIPLIERS[0], one)
        high_three, low_three = _product(MULTIPLIERS[1], three)
        one, two, three, four = high_three ^ two ^ first, low_three, high_one ^ four ^ second, low_one
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return one, two, three, four


def _product(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product of two words, by halves: 64 bits are too many for an int64."""
    lower = (word & 0xFFFF) * constant
    upper = (word >> 16) * constant + (lower >> 16)
    return upper >> 16, (upper & 0xFFFF) << 16 | lower & 0xFFFF


def new_key(generator: torch.Generator) -> Tensor:
    """A key (2,) from the next numbers of ``generator``, on its device."""
    return torch.randint(WORD + 1, (2,), generator=generator, device=generator.device)


def normals(key: Tensor, shapes: Sequence[tuple[int, int, int, int]], dtype: torch.dtype) -> list[Tensor]:
    """Standard normal numbers in these shapes, all of them in as many operations as one takes.

    ``key`` (2,) has two words. A number depends on it, on its own place and on the sum of the first axes of the shapes
    before, but not on how long its other axes are. Four neighbours in the last axis share a block of bits.
    """
    counters: list[list[Tensor]] = []
    blocks, begin = [], 0
    for first, *others, length in shapes:
        sizes = (first, *others, -(-length // 4))
        places = [torch.arange(size, device=key.device) for size in sizes]
        places[0] = places[0] + begin
        begin += first
        axes = [place.view(-1, *[1] * (3 - axis)) for axis, place in enumerate(places)]
        counters.append([axis.expand(sizes).flatten() for axis in axes])
        blocks.append(sizes)
    words = philox([torch.cat(one) for one in zip(*counters, strict=True)], key.unbind())
    numbers = torch.stack([*_box_muller(words[0], words[1], dtype), *_box_muller(words[2], words[3], dtype)], -1)
    drawn = numbers.split([math.prod(sizes) for sizes in blocks])
    return [own.view(*sizes[:3], -1)[..., : shape[3]] for own, sizes, shape in zip(drawn, blocks, shapes, strict=True)]


def _box_muller(one: Tensor, two: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers of two words."""
    radius = (-2.0 * torch.log((one + 1).to(dtype) * 2.0**-32)).sqrt()
    angle = two.to(dtype) * (2.0**-32 * 2 * math.pi)
    return radius * torch.cos(angle), radius * torch.sin(angle)
