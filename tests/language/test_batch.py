"""Which examples share a batch."""

import torch

from abmll.language.batch import MAX_BATCH, batches_of_like_length
from abmll.language.encoding import Encoded


def test_batches_hold_every_example_once_within_their_limits() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 90, (200,), generator=generator).tolist()
    lengths.append(500)
    examples = [Encoded(tuple(range(length)), ((1,), (2,)), None) for length in lengths]
    batches = batches_of_like_length(examples, 300)
    assert sorted(index for batch in batches for index in batch) == list(range(201))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= 300
    assert batches[-1] == [200]  # longer than the limit: alone
    assert max(map(len, batches_of_like_length(examples[:200], 10**9))) == MAX_BATCH


def test_a_prefix_counts_once_a_batch_and_a_batch_is_no_more_than_four_times_as_long() -> None:
    def batches(length: int, prefix: int) -> list[int]:
        examples = [Encoded(tuple(range(length)), ((1,), (2,)), None)] * 31
        return [len(batch) for batch in batches_of_like_length(examples, 300, prefix)]

    assert batches(60, 0) == [5] * 6 + [1]
    assert batches(60, 40) == [13, 13, 5]  # 40 + 13 * 20 tokens
    assert batches(100, 95) == [12, 12, 7]  # 4 * 300 tokens for attention
