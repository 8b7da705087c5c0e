"""Which examples share a batch, and where they lie in it."""

import pytest
import torch

from abmll.language.batch import MAX_BATCH, batches_of_like_length, collate
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


@pytest.mark.parametrize("packed", [True, False])
def test_runs_are_the_groups_share_of_positions_and_of_scored_ones(packed: bool) -> None:
    lengths = [(4, 2), (7, 1), (5, 3), (4, 2)]  # of prompts, and of two options
    examples = [Encoded(tuple(range(10, 10 + n)), (tuple(range(m)), (9, 8)), 0) for n, m in lengths]
    batch = collate(examples, 0, packed, share_prefix=False)
    tokens = [len(one) for one in examples]
    scored = [m + 1 for _, m in lengths]  # the prompt's last token, and all but the last of each option
    positions = tokens if packed else [max(tokens)] * 4
    wanted = {sum(values): [values[0], sum(values[1:3]), values[3]] for values in (scored, positions)}
    assert batch.runs([1, 2, 1]) == wanted
    assert len(batch.rows) in wanted
    assert batch.input_ids.numel() in wanted
