"""Examples, tasks, and the split by content."""

import random

import pytest

from abmll.common.errors import DataError
from abmll.tasks.types import Example, Task, content_hash, normalize, split_by_content


def example(number: int, **changes: object) -> Example:
    values = {"id": str(number), "input": f"Is {number} even?", "options": ("yes", "no"), "answer": 0, **changes}
    return Example(**values)  # type: ignore[arg-type] (wrong types are tested too)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ("yes",)}, "1 option; a question needs at least 2"),
        ({"options": ()}, "0 options; a question needs at least 2"),
        ({"options": tuple(map(str, range(201)))}, "201 options; at most 200"),
        ({"input": " \n\t"}, "the input is white space alone; give the question, or leave it empty"),
        ({"options": ("yes", " yes ")}, "options 0 and 1 are both 'yes'"),
        ({"options": ("yes", " ")}, "option 1 is empty"),
        ({"answer": 2}, "answer 2 is out of range"),
        ({"answer": -1}, "answer -1 is out of range"),
        ({"split": "dev"}, "split is 'dev'"),
    ],
)
def test_an_invalid_example_cannot_be_made(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        example(1, **changes)


def test_the_most_options_an_unknown_answer_and_no_input_are_allowed() -> None:
    assert example(1, options=tuple(map(str, range(200))), answer=None).answer is None
    assert example(1, input="").input == ""


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ((), "no examples"),
        ((example(1), example(1)), "id '1' occurs twice"),
        ((example(1, split="train"), example(2)), "1 of 2 examples carry a 'split'"),
    ],
)
def test_an_invalid_task_cannot_be_made(examples: tuple[Example, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"here: {message}"):
        Task("t", examples, source="here")


def test_a_given_split_is_respected() -> None:
    task = Task("t", (example(1, split="test"), example(2, split="train"), example(3, split="test")))
    assert [e.id for e in task.test] == ["1", "3"]
    assert [e.id for e in task.train] == ["2"]


def test_the_split_by_content_is_80_to_20_and_knows_no_order_ids_or_answers() -> None:
    examples = [example(n) for n in range(50)]
    train = {e.input for e in Task("t", tuple(examples)).train}
    assert len(train) == 40
    shuffled = [Example(f"other {e.id}", e.input, e.options[::-1], None) for e in examples]
    random.Random(1).shuffle(shuffled)
    assert {e.input for e in Task("u", tuple(shuffled)).train} == train


@pytest.mark.parametrize(("number", "expected"), [(1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (10, (8, 2))])
def test_small_tasks_have_both_sides_where_they_can(number: int, expected: tuple[int, int]) -> None:
    task = Task("t", tuple(example(n) for n in range(number)))
    assert (len(task.train), len(task.test)) == expected


def test_copies_of_an_example_stay_on_one_side() -> None:
    examples = [example(n, id=f"{n}-{copy}") for copy in range(3) for n in range(10)]
    sides = split_by_content(examples)
    assert sides[:10] == sides[10:20] == sides[20:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   WORLD! ", "hello world"),
        ("Ｆｕｌｌ “width”", "full width"),  # noqa: RUF001 (full width is what is tested)
        ("?!", "?!"),
        ("1+1", "1+1"),
        ("3.5", "3 5"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_the_content_hash_keeps_sums_and_differences_apart() -> None:
    assert content_hash(example(1, input="1 + 1")) != content_hash(example(1, input="1 - 1"))
    assert content_hash(example(1, options=("a", "b"))) != content_hash(example(1, options=("a", "c")))
    assert content_hash(example(1, options=("a", "B."))) == content_hash(
        example(2, input="is 1 even", options=("b", "A"))
    )
