"""Several processes: every unit is done once, errors come through, nothing is left running."""

import math
import multiprocessing
import operator
import os
from functools import partial

import pytest

from abmll.common.errors import AbmllError
from abmll.common.files import disk_errors
from abmll.experiments.workers import work_through


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_unit_is_done_once(jobs: int) -> None:
    # make() gives the function: partial(partial, neg)() is neg
    done = dict(work_through([1, 2, 3, 4, 5], partial(partial, operator.neg), jobs))
    assert done == {1: -1, 2: -2, 3: -3, 4: -4, 5: -5}
    assert list(work_through([], partial(partial, operator.neg), jobs)) == []
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(AbmllError, match="has ended with code 3, perhaps for want of memory"):
        list(work_through([3, 3], partial(partial, os._exit), 2))
    assert multiprocessing.active_children() == []


def test_one_process_is_this_one() -> None:
    assert [result for _, result in work_through([4.0], partial(partial, math.sqrt), 8)] == [2.0]
    with pytest.raises(AbmllError, match="cannot write"), disk_errors("x"):
        list(work_through(["/nowhere/at/all"], partial(partial, os.rmdir), 1))
