"""Several processes: every unit is done once, errors come through, nothing is left running."""

import math
import multiprocessing
import operator
import os
import time

import pytest

from abmll.common.errors import AbmllError
from abmll.common.files import disk_errors
from abmll.experiments.execution import work_through


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_unit_is_done_once(jobs: int) -> None:
    done = dict(work_through([1, 2, 3, 4, 5], operator.neg, jobs))
    assert done == {1: -1, 2: -2, 3: -3, 4: -4, 5: -5}
    assert list(work_through([], operator.neg, jobs)) == []
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(AbmllError, match="has ended by itself, perhaps for want of memory"):
        list(work_through([3, 3], os._exit, 2))
    assert multiprocessing.active_children() == []


def test_one_process_is_this_one() -> None:
    assert [result for _, result in work_through([4.0], math.sqrt, 8)] == [2.0]
    with pytest.raises(AbmllError, match="cannot write"), disk_errors("x"):
        list(work_through(["/nowhere/at/all"], os.rmdir, 1))


def test_what_a_process_raises_comes_through_and_ends_the_others() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        list(work_through([-1, 3600], time.sleep, 2))
    assert multiprocessing.active_children() == []
