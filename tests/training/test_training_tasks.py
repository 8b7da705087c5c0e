"""Which tasks cannot be learned from, and the fingerprint of those that can."""

from dataclasses import replace
from typing import Any

import pytest

from abmll import AbmllModel
from abmll.common.config import PromptConfig
from abmll.common.errors import DataError
from abmll.language.encoding import Encoder
from abmll.tasks import Example, Task
from abmll.training.training_tasks import check_encodings, fingerprint, usable


def example(number: int, **changes: Any) -> Example:
    return replace(Example(str(number), f"word {number}", ("yes", "no"), 0, "train"), **changes)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "no training tasks; give at least one"),
        (
            [Task("small", (example(0),), source="small.jsonl"), Task("t", (example(0), example(1)))],
            "small.jsonl: 1 training examples, but this method needs at least 2 of each task; add some, or leave",
        ),
        (
            [Task("t", (example(0, answer=None), *(example(n) for n in range(1, 9))))],
            "task 't': training example '0' has no answer to learn from",
        ),
        ([Task("t", tuple(example(n) for n in range(9)))] * 2, "2 training tasks are called 't'; give each a name"),
    ],
)
def test_unusable_tasks_are_refused(tasks: list[Task], words: str) -> None:
    with pytest.raises(DataError) as caught:
        usable(tasks, 2)
    assert str(caught.value).startswith(words)


def test_a_union_needs_some_examples_somewhere() -> None:
    tests = Task("tests", (example(0, split="test"),))
    assert len(usable([tests, Task("small", (example(0),))], 0)) == 2
    with pytest.raises(DataError, match="the training tasks have no training examples"):
        usable([tests], 0)


def test_tasks_are_taken_by_name_whatever_their_order(toy_tasks: list[Task]) -> None:
    assert usable(toy_tasks[::-1], 1) == toy_tasks


def test_a_fingerprint_is_what_it_was_in_earlier_versions() -> None:
    # A resumed run is refused where it differs.
    tasks = [Task(name, (example(0), example(1, answer=1))) for name in ("a", "b")]
    assert fingerprint(tasks) == "1590f094285d511c88b5a135bc06401b8b7026443bab6bf540079494c1240728"


@pytest.mark.parametrize("change", ["name", "input", "options", "answer", "fewer"])
def test_the_fingerprint_sees_every_change_of_what_is_learned(toy_tasks: list[Task], change: str) -> None:
    rows = [replace(example, split="train") for example in toy_tasks[0].train]
    task = Task("toy0", tuple(rows))
    first = rows[0]
    changed = {
        "name": replace(task, name="toy9"),
        "input": replace(task, examples=(replace(first, input="other"), *rows[1:])),
        "options": replace(task, examples=(replace(first, options=("yes", "nay")), *rows[1:])),
        "answer": replace(task, examples=(replace(first, answer=1 - (first.answer or 0)), *rows[1:])),
        "fewer": replace(task, examples=tuple(rows[1:])),
    }[change]
    before, after = (fingerprint([one, *toy_tasks[1:]]) for one in (task, changed))
    assert before != after
    unread = replace(task, family="f", source="elsewhere", examples=(replace(first, id="new"), *rows[1:]))
    assert fingerprint([unread, *toy_tasks[1:]]) == before


def test_an_example_too_long_is_refused_with_its_file(tiny_model: AbmllModel, toy_tasks: list[Task]) -> None:
    encoder, few = tiny_model.scorer.encoder, [range(3)] * len(toy_tasks)
    assert check_encodings(encoder, toy_tasks, few) == (9, 0)
    long = example(3, options=("a" * 3000, "b"))
    tasks = [*toy_tasks, Task("toy9", (*(example(n) for n in range(3)), long), source="toy9.jsonl")]
    assert check_encodings(encoder, tasks, [*few, range(3)]) == (12, 0)  # it is not among those that are read
    with pytest.raises(DataError, match=r"^toy9.jsonl: task 'toy9', example '3': options and prompt frame leave no"):
        check_encodings(encoder, tasks, [*few, range(4)])


def test_inputs_that_are_cut_are_counted(tiny_model: AbmllModel) -> None:
    scorer = tiny_model.scorer
    encoder = Encoder(scorer.base.tokenizer, PromptConfig(instruction=False, answer="text"), 60)
    task = Task("t", (example(0), example(1, input="x" * 90), example(2, input="y" * 90)))
    assert check_encodings(encoder, [task], [range(3)]) == (3, 2)
