"""What counts as a leak, and what does not."""

import pytest

from abmll.common.errors import DataError
from abmll.tasks import Example, Task
from abmll.tasks.leaks import check_leaks, refuse_leaks


def task(name: str, *questions: str, options: tuple[str, ...] = ("yes", "no"), family: str | None = None) -> Task:
    return Task(name, tuple(Example(f"{name}/{q}", q, options, 0) for q in questions), family)


def test_a_clean_suite() -> None:
    train, evaluation = task("a", "Is it?", family="f"), task("b", "Is it not?", family="g")
    assert check_leaks([train], [evaluation]) == []
    refuse_leaks([train], [evaluation])


def test_a_shared_task_is_one_finding() -> None:
    assert check_leaks([task("a", "x", "y", family="f")], [task("a", "x", "y", family="f")]) == [
        "task 'a' is a training and an evaluation task"
    ]


def test_a_shared_family() -> None:
    findings = check_leaks([task("a", "x", family="f"), task("c", "u")], [task("b", "y", family="f"), task("d", "v")])
    assert findings == ["evaluation task 'b' is of the family 'f' of training task 'a'"]


def test_shared_examples_whatever_their_spelling() -> None:
    train = task("a", "Is the SKY blue", "other", options=("no", "Yes."))
    evaluation = task("b", "is the  sky blue?", "another")
    (finding,) = check_leaks([train], [evaluation])
    assert finding == ("evaluation task 'b' shares 1 examples (such as 'b/is the  sky blue?') with training task 'a'")
    with pytest.raises(DataError, match="not be of unseen tasks: evaluation task 'b' shares 1"):
        refuse_leaks([train], [evaluation])


def test_equal_inputs_with_other_options_are_no_leak() -> None:
    assert check_leaks([task("a", "Which?")], [task("b", "Which?", options=("x", "y"))]) == []


def test_the_number_of_leaks_is_told() -> None:
    tasks = [task("a", "x"), task("b", "y")]
    with pytest.raises(DataError, match=r"\(and 1 more\)"):
        refuse_leaks(tasks, tasks)
