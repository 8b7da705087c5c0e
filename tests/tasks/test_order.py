"""The order of tasks and examples: pure, complete, and different where it should be."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from abmll.tasks.order import (
    adaptation_batches,
    batches_of_episode,
    permutation,
    sample_seed,
    task_of_episode,
    union_batches,
)


def test_every_task_comes_once_an_epoch_in_changing_orders() -> None:
    epochs = [[task_of_episode(3, episode, 7) for episode in range(7 * e, 7 * e + 7)] for e in range(20)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 15
    assert epochs[0] != [task_of_episode(4, episode, 7) for episode in range(7)]


def test_an_episode_repeats_no_example_before_all_have_come() -> None:
    batches = batches_of_episode(0, 5, num_examples=10, batch_size=2, num_batches=5)
    assert [len(batch) for batch in batches] == [2] * 5
    assert sorted(chain(*batches)) == list(range(10))
    longer = batches_of_episode(0, 5, num_examples=10, batch_size=4, num_batches=5)
    assert list(chain(*longer))[:10] == list(chain(*batches))
    assert Counter(chain(*longer)) == dict.fromkeys(range(10), 2)
    assert batches != batches_of_episode(0, 6, num_examples=10, batch_size=2, num_batches=5)


def test_fewer_examples_than_a_batch_holds_come_again() -> None:
    assert [sorted(batch) for batch in batches_of_episode(0, 0, 2, batch_size=4, num_batches=3)] == [[0, 1]] * 3


def test_adaptation_passes_over_the_examples() -> None:
    batches = adaptation_batches(1, num_examples=6, batch_size=3, steps=4)
    assert sorted(batches[0] + batches[1]) == sorted(batches[2] + batches[3]) == list(range(6))
    assert batches[:2] != batches[2:]
    assert adaptation_batches(1, 6, 3, 2) == batches[:2]


def test_the_union_is_walked_through_once_an_epoch() -> None:
    sizes = [3, 0, 4, 5]
    episodes = [union_batches(0, episode, np.cumsum(sizes), batch_size=2, num_batches=3) for episode in range(4)]
    pairs = [pair for batches in episodes for batch in batches for pair in batch]
    everything = [(task, example) for task, size in enumerate(sizes) for example in range(size)]
    assert sorted(pairs[:12]) == sorted(pairs[12:]) == everything
    assert pairs[:12] != pairs[12:]


def test_an_episode_of_the_union_may_span_more_than_an_epoch() -> None:
    first, second = (union_batches(0, episode, np.cumsum([2, 1]), batch_size=4, num_batches=1)[0] for episode in (0, 1))
    assert sorted(first[:3]) == sorted(first[3:] + second[:2]) == [(0, 0), (0, 1), (1, 0)]


def test_a_permutation_is_what_it_was_in_earlier_versions() -> None:
    # A resumed run meets the same order only as long as these numbers stay.
    assert permutation(8, 0, "a", 1) == [5, 2, 3, 7, 6, 4, 0, 1]
    assert sample_seed(0, "noise", 7) == 2619167260764136879


def test_seeds_differ_by_label_and_fit_into_63_bits() -> None:
    seeds = {sample_seed(seed, label, n) for seed in range(5) for label in ("a", "b") for n in range(20)}
    assert len(seeds) == 200
    assert max(seeds) < 2**63
    assert sample_seed(1, 23) != sample_seed(12, 3)


def test_permutations_are_uniform() -> None:
    counts = Counter(tuple(permutation(3, seed, "uniform")) for seed in range(6000))
    assert len(counts) == 6
    # Each count is binomial with mean 1000 and standard deviation 29.
    assert all(abs(count - 1000) < 5 * 29 for count in counts.values())


@pytest.mark.parametrize("arguments", [(0, 0, 0, 2, 2), (0, 0, 5, 0, 2), (0, 0, 5, 2, 0)])
def test_nothing_to_draw_from_is_a_mistake(arguments: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        batches_of_episode(*arguments)


def test_episodes_are_what_they_were_in_earlier_versions() -> None:
    assert batches_of_episode(3, 7, 11, 3, 3) == [[8, 9, 6], [0, 1, 4], [2, 7, 3]]
    assert batches_of_episode(0, 0, 6, 3, 2) == [[0, 5, 4], [2, 3, 1]]
    assert union_batches(1, 4, np.cumsum([3, 0, 5]), 3, 2) == [[(0, 0), (2, 4), (0, 2)], [(0, 1), (2, 3), (2, 1)]]
