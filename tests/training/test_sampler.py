"""Which examples an episode takes, of tasks of any size."""

from collections import Counter
from itertools import chain
from typing import Any

import pytest

from abmll.tasks.order import batches_of_episode
from abmll.training.sampler import EpisodeSampler

SIZES = (48, 20)


def sampler(sizes: Any = SIZES, **settings: Any) -> EpisodeSampler:
    values: dict[str, Any] = {"batch_size": 4, "steps": 3} | settings
    return EpisodeSampler(0, sizes, **values)


def test_large_tasks_are_read_as_in_earlier_versions() -> None:
    one = sampler(steps=2, batch_size=3)
    for episode in range(6):
        task = one.task(episode)
        assert task is not None
        wanted = batches_of_episode(0, episode, one.sizes[task], 3, 2)
        assert one.batches(episode) == [[(task, index) for index in batch] for batch in wanted]


@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 19])
def test_small_tasks_repeat_their_examples(size: int, query: bool) -> None:
    one = EpisodeSampler(0, [size], batch_size=4, steps=5, query=query)
    if query and size == 1:
        with pytest.raises(ValueError, match="it needs 2"):
            one.batches(0)
        return
    for episode in range(4):
        batches = one.batches(episode)
        inner, held_out = (batches[:-1], batches[-1]) if query else (batches, [])
        assert len(inner) == 5
        assert len(held_out) == (min(4, size // 2) if query else 0)
        left = size - len(held_out)
        assert {len(batch) for batch in inner} == {min(4, left)}
        counts = Counter(chain(*inner))
        assert not {*held_out} & {*counts}
        assert {index for _, index in chain(counts, held_out)} == {*range(size)}
        assert max(counts.values()) - min(counts.values()) <= 1  # whole passes, and a part of the last
    if size > 3:
        assert one.batches(0) != one.batches(1)


def test_each_pass_has_an_order_of_its_own() -> None:
    order = [index for batch in EpisodeSampler(0, [19], 19, 3).batches(0) for _, index in batch]
    passes = [order[start : start + 19] for start in (0, 19, 38)]
    assert all(sorted(one) == list(range(19)) for one in passes)
    assert len({*map(tuple, passes)}) == 3


def test_a_query_batch_is_one_more_without_common_examples() -> None:
    drawn = sampler(query=True).batches(0)
    assert [len(pairs) for pairs in drawn] == [4, 4, 4, 4]
    assert not {*drawn[3]} & {*chain(*drawn[:3])}
    assert drawn[:3] == sampler().batches(0)


def test_small_tasks_do_in_a_union() -> None:
    assert [len(batch) for batch in sampler((0, 2), draws_from="union").batches(0)] == [4, 4, 4]
    assert sampler(draws_from="union").task(0) is None


@pytest.mark.parametrize("draws_from", ["task", "union"])
def test_what_the_first_episodes_read(draws_from: Any) -> None:
    one = sampler(draws_from=draws_from)
    for count in (1, 5, 100):
        pairs = {pair for episode in range(count) for pair in chain(*one.batches(episode))}
        drawn = one.drawn(count)
        assert {(task, index) for task, indices in enumerate(drawn) for index in indices} == pairs
        assert drawn == [sorted(indices) for indices in drawn]
    assert list(map(len, one.drawn(100))) == [*one.sizes]  # a hundred episodes read everything


def test_demonstrations_are_others_of_the_task() -> None:
    one = sampler((20,))
    for episode in range(5):
        taken = {index for _, index in chain(*one.batches(episode))}
        shown = one.demonstrations(episode, 3)
        assert len({*shown}) == 3
        assert not {*shown} & taken
        assert len(one.demonstrations(episode, 30)) == 8  # all that are left
    assert sampler((12,)).demonstrations(0, 3) == []
