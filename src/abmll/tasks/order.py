"""Which task, which examples, which noise: pure functions of (seed, episode), so that resuming needs no stored state.

Episodes count from 0. Permutations come from the raw 64-bit output of Philox, keyed by a SHA-256 of seed and labels:
unlike ``Generator.shuffle``, both are the same in every version of NumPy, on every machine.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain, count, islice

import numpy as np
from numpy.typing import NDArray

from abmll.tasks.types import Task


def sample_seed(seed: int, *labels: int | str) -> int:
    """A 63-bit seed for a random generator, independent for every list of labels: SHA-256 of seed and labels."""
    digest = hashlib.sha256(json.dumps([seed, *labels]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def permutation(length: int, seed: int, *labels: int | str) -> list[int]:
    """The numbers 0 to ``length - 1`` in an order that seed and labels determine."""
    return _permutation(length, seed, *labels).tolist()


def _permutation(length: int, seed: int, *labels: int | str) -> NDArray[np.int64]:
    words = np.random.Philox(key=sample_seed(seed, "permutation", *labels)).random_raw(length)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=2)
def _order_of_epoch(length: int, seed: int, what: str, epoch: int) -> NDArray[np.int64]:
    """An epoch's permutation. All its episodes ask for it: made anew for each, n tasks would cost n^2 log n.

    Two are kept, as an episode may begin in one epoch and end in the next.
    """
    return _permutation(length, seed, what, epoch)


def task_of_episode(seed: int, episode: int, num_tasks: int) -> int:
    """The task of an episode. Every task comes once in ``num_tasks`` episodes (an epoch), each time in a new order."""
    _at_least_one(num_tasks=num_tasks)
    epoch, position = divmod(episode, num_tasks)
    return int(_order_of_epoch(num_tasks, seed, "tasks", epoch)[position])


def batches_of_episode(
    seed: int, episode: int, num_examples: int, batch_size: int, num_batches: int, *, query: bool = False
) -> list[list[int]]:
    """The examples of an episode's batches; none comes twice before each has come once.

    A task with too few examples for all batches gives smaller ones (at most all its examples), and more than one pass
    over its examples, in a new order each pass. A query batch never shares an example with the others: there it is the
    last examples of the first pass, at most half of all, and the other batches pass over the rest.

    Returns:
        ``num_batches`` lists of at most ``batch_size`` indices below ``num_examples``, and one more with ``query``.

    Raises:
        ValueError: a number below 1; a query batch from a single example.
    """
    _at_least_one(num_examples=num_examples, batch_size=batch_size, num_batches=num_batches)
    if query and num_examples < 2:
        raise ValueError("one example, of which a query batch would leave none; it needs 2")
    labels = ("visit", episode)
    if num_examples >= (num_batches + query) * batch_size:
        return _batches(num_examples, batch_size, num_batches + query, seed, *labels)
    first = permutation(num_examples, seed, *labels, 0)
    size = min(batch_size, num_examples // 2) if query else 0
    others, held_out = first[: num_examples - size], first[num_examples - size :]
    later = (others[index] for index in _passes(len(others), seed, *labels, first=1))
    stream = chain(others, later)
    batches = [list(islice(stream, min(batch_size, len(others)))) for _ in range(num_batches)]
    return [*batches, held_out] if query else batches


def adaptation_batches(seed: int, num_examples: int, batch_size: int, steps: int) -> list[list[int]]:
    """``steps`` batches of ``batch_size`` indices: passes over the examples of an unseen task, each in a new order."""
    return _batches(num_examples, batch_size, steps, seed, "adaptation")


def demonstrations(seed: int, num_examples: int, count: int, asked: Collection[int], *labels: int | str) -> list[int]:
    """At most ``count`` examples, none of ``asked``, to show before those; seed and labels determine which."""
    order = permutation(num_examples, seed, "demonstrations", *labels)
    return list(islice((index for index in order if index not in asked), count))


def union_batches(
    seed: int, episode: int, ends: NDArray[np.int64], batch_size: int, num_batches: int
) -> list[list[tuple[int, int]]]:
    """``num_batches`` batches of ``batch_size`` pairs (task, example), drawn from the shuffled union of all tasks.

    Consecutive episodes walk through the union. ``ends`` are the sums of the numbers of examples of the tasks so far.
    """
    total = int(ends[-1]) if len(ends) else 0
    _at_least_one(batch_size=batch_size, num_batches=num_batches, examples=total)
    start = episode * batch_size * num_batches
    pairs = []
    for place in range(start, start + batch_size * num_batches):
        epoch, offset = divmod(place, total)
        index = _order_of_epoch(total, seed, "union", epoch)[offset]
        task = int(np.searchsorted(ends, index, side="right"))
        pairs.append((task, int(index - (ends[task - 1] if task else 0))))
    return [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]


def limit_train(task: Task, limit: int | None, seed: int) -> Task:
    """The task with at most ``limit`` of its training examples, the first of an order that ``seed`` determines.

    A smaller limit keeps a part of what a larger one keeps. None changes nothing; the test examples all stay.
    """
    if limit is None or len(task.train) <= limit:
        return task
    chosen = sorted(permutation(len(task.train), seed, "limit", task.name)[:limit])
    train = [replace(task.train[index], split="train") for index in chosen]
    return replace(task, examples=(*train, *(replace(example, split="test") for example in task.test)))


def _batches(num_examples: int, batch_size: int, num_batches: int, seed: int, *labels: int | str) -> list[list[int]]:
    _at_least_one(num_examples=num_examples, batch_size=batch_size, num_batches=num_batches)
    stream = _passes(num_examples, seed, *labels)
    return [list(islice(stream, batch_size)) for _ in range(num_batches)]


def _passes(length: int, seed: int, *labels: int | str, first: int = 0) -> Iterator[int]:
    """Endless passes over 0 to ``length - 1``, each in its own order, from pass number ``first`` on."""
    for number in count(first):
        yield from permutation(length, seed, *labels, number)


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}, must be at least 1")
