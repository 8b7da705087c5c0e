"""The cells of a small comparison."""

from collections.abc import Callable
from typing import Any

import pytest

from abmll.common.settings import flatten
from abmll.experiments.budget import BudgetConfig, EvaluationGrid
from abmll.experiments.cells import Cell
from abmll.experiments.method_spec import ComparisonConfig, defaults, parse_specs
from abmll.experiments.planning import plan
from abmll.tasks import Task
from abmll.tasks.suite import Suite


@pytest.fixture
def wanted(toy_tasks: list[Task]) -> Callable[..., list[Cell]]:
    """The cells of some methods on two training tasks and an unseen one."""
    suite = Suite("toys", "", tuple(toy_tasks[:2]), (toy_tasks[2],), adapt_examples=7)

    def make(*methods: str, seeds: tuple[int, ...] = (0,), suite: Suite = suite, **asked: Any) -> list[Cell]:
        shared = defaults() | flatten(BudgetConfig(), EvaluationGrid())
        return plan(suite, ComparisonConfig(parse_specs(methods), seeds, shared, {}, asked, {}))

    make.suite = suite  # pyright: ignore[reportFunctionMemberAccess]
    return make
