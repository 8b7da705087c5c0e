"""Examples held packed: equal to what went in, in every way of reading, and much smaller."""

import tracemalloc
from collections.abc import Callable

import pytest

from abmll.tasks import Example, Task
from abmll.tasks.packed import BLOCK, PackedExamples


def example(number: int) -> Example:
    """All that an example may hold: characters of every kind, unknown answers, missing splits, up to 26 options."""
    options = tuple(f"option {letter} 🙂 \u2028{number}" for letter in range(2 + number % 25))
    answer = None if number % 3 == 0 else number % len(options)
    return Example(
        f"é/{number}", f'"{number}"\n\t\\ ü€' * (number % 4), options, answer, (None, "train", "test")[number % 3]
    )


COUNTS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_read_equals_what_was_packed(count: int) -> None:
    examples = tuple(example(number) for number in range(count))
    packed = PackedExamples(iter(examples))
    assert len(packed) == count
    assert tuple(packed) == examples
    assert [packed[index] for index in range(-count, count)] == [*examples, *examples]
    assert packed == examples
    assert packed == PackedExamples(examples)
    assert hash(packed) == hash(PackedExamples(examples))
    assert packed != PackedExamples(examples[1:])
    assert packed != (*examples[:-1], example(count))
    for beyond in (count, -count - 1):
        with pytest.raises(IndexError):
            packed[beyond]


def test_views_read_the_chosen_examples_in_their_order() -> None:
    examples = tuple(example(number) for number in range(100))
    packed = PackedExamples(examples)
    for cut in (slice(5), slice(40, 90), slice(None, None, -3), slice(200, 300)):
        assert tuple(packed[cut]) == examples[cut]
    view = packed.select([99, 0, 33, 32, 0])
    assert tuple(view) == tuple(examples[index] for index in (99, 0, 33, 32, 0))
    assert tuple(view[1:].select([0, 2])) == (examples[0], examples[32])
    assert view[2] == examples[33]
    with pytest.raises(IndexError):
        packed.select([100])


def test_a_task_gives_equal_examples_however_it_came_by_them() -> None:
    examples = tuple(Example(str(n), f"is {n} even?", ("yes", "no"), n % 2) for n in range(70))
    task = Task("parity", examples)
    assert task.examples == examples
    assert task == Task("parity", list(examples)) == Task("parity", task.examples)
    assert {*task.train} | {*task.test} == {*examples}
    assert len(task.train) + len(task.test) == 70
    assert hash(task) == hash(Task("parity", examples))


@pytest.mark.parametrize("side", ["whole", "train"])
def test_packed_examples_take_a_fraction_of_the_memory(side: str) -> None:
    def text(number: int) -> str:
        return " ".join(f"word{number * place % 97}" for place in range(60))

    def traced(make: Callable[[], object]) -> int:
        tracemalloc.start()
        held = make()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held is not None
        return size

    def examples() -> list[Example]:
        return [Example(f"t/{n}", text(n), ("yes", "no"), 0) for n in range(1000)]

    def task() -> object:
        made = Task("t", examples())
        return (made, made.train) if side == "train" else made

    assert traced(task) < traced(examples) / 3
