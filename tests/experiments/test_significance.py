"""Intervals and p-values: by hand, and whether 95 % of them hold where the truth is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from abmll.experiments.bootstrap import MIN_TASKS
from abmll.experiments.metrics import Floats, squared_calibration_error
from abmll.experiments.significance import joined, of_means, of_pooled, only_pooled
from abmll.experiments.statistics import Interval, t_interval

WORLDS = 1000
NUM_TASKS, NUM_EXAMPLES = 5, 100


def row(*nll: float, seeds: Sequence[int] = (0,), **more: list[float]) -> dict[str, Any]:
    """A row whose tasks have these values of NLL, and of other metrics."""
    values = {"nll": list(nll), **more}
    tasks = {f"t{n}": {name: own[n] for name, own in values.items()} for n in range(len(nll))}
    return {"tasks": tasks, "seeds": list(seeds)}


def test_means_have_the_t_interval_over_tasks_and_differences_are_paired() -> None:
    rows = {"a": row(1.0, 2.0, 4.0), "b": row(1.5, 2.25, 4.5)}
    rows["b"]["tasks"] = dict(reversed(rows["b"]["tasks"].items()))  # the order of tasks means nothing
    found = of_means(rows, [0], "a")
    assert found["a"] == {"intervals": {"nll": t_interval([1.0, 2.0, 4.0])[:3]}}
    assert found["b"]["differences"]["nll"] == pytest.approx(t_interval([0.5, 0.25, 0.5])._asdict())


def test_who_lacks_seeds_metrics_or_a_second_task_lacks_statistics() -> None:
    rows = {"a": row(1.0, 2.0, squared_ce=[0.1, 0.2], ece=[0.1, 0.2]), "b": row(1.0, 2.5), "c": row(1.0, 2.0, seeds=[])}
    found = of_means(rows, [0], "a")
    assert set(found) == {"a", "b"}
    assert set(found["a"]["intervals"]) == {"nll", "squared_ce"}
    assert set(found["b"]["differences"]) == {"nll"}
    assert "differences" not in of_means(rows, [0], "gone")["b"]
    one = of_means({"a": row(1.0), "b": row(3.0)}, [0], "a")
    assert one["b"] == {
        "intervals": {"nll": (3.0, None, None)},
        "differences": {"nll": {"value": 2.0, "low": None, "high": None, "p": None}},
    }


def test_the_pooled_error_has_statistics_where_tasks_are_enough() -> None:
    rows = [{"id": str(n), "probs": [0.75, 0.25], "answer": int(n % 4 == 0)} for n in range(40)]
    answers = {key: {0: {f"t{n}": rows for n in range(MIN_TASKS)}} for key in "ab"}
    found = of_pooled(answers, "a")
    assert found["a"]["intervals"]["pooled_ece"][0] == 0.0
    assert found["b"]["differences"]["pooled_ece"]["p"] == 1.0
    assert of_pooled({key: {0: dict.fromkeys(list(own[0])[1:], rows)} for key, own in answers.items()}, "a") == {}
    assert of_pooled({"a": {0: {}}}, "a") == {}
    mine = row(*[1.0] * MIN_TASKS) | {"statistics": joined(found["b"], of_means({"b": row(1.0, 2.0)}, [0], "b")["b"])}
    assert set(mine["statistics"]["intervals"]) == {"nll", "pooled_ece"}
    assert only_pooled(mine) == found["b"]
    assert only_pooled(mine | {"tasks": {}}) == {}


def shares(found: Sequence[Interval], truth: float) -> tuple[float, float]:
    """How many intervals cover the truth, and how many p-values are below .05."""
    covered = [one.low is not None and one.high is not None and one.low <= truth <= one.high for one in found]
    return float(np.mean(covered)), float(np.mean([one.p is not None and one.p < 0.05 for one in found]))


@pytest.mark.parametrize(("truth", "spread"), [(0.0, 0.06), (0.0, 0.15), (0.05, 0.06)])
def test_differences_of_five_tasks_that_differ_are_covered(truth: float, spread: float) -> None:
    """Accuracies of two methods whose difference varies from task to task around the truth."""
    rng = np.random.default_rng([1, round(100 * truth), round(100 * spread)])
    found = []
    for _ in range(WORLDS):
        level, apart = rng.uniform(0.4, 0.6, size=NUM_TASKS), rng.normal(truth, spread, size=NUM_TASKS)
        one = rng.binomial(NUM_EXAMPLES, (level + apart / 2).clip(0, 1)) / NUM_EXAMPLES
        other = rng.binomial(NUM_EXAMPLES, (level - apart / 2).clip(0, 1)) / NUM_EXAMPLES
        rows = {"one": row(*one), "other": row(*other)}
        found.append(Interval(**of_means(rows, [0], "other")["one"]["differences"]["nll"]))
    covered, significant = shares(found, truth)
    assert 0.93 <= covered <= 0.98
    assert truth or significant <= 0.07


def calibrated(rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Confidences of a sharp and of a blunt method on one task, and answers for which both are calibrated."""
    level = rng.uniform(0.45, 0.75)
    sharp = rng.beta(2 * level, 2 * (1 - level), size=NUM_EXAMPLES)
    return sharp, np.full(NUM_EXAMPLES, level), (rng.random(NUM_EXAMPLES) < sharp).astype(float)


def test_calibrated_methods_of_different_sharpness_do_not_differ() -> None:
    """The blunt method knows the task's accuracy alone; a biased estimate differs in nearly every world."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(WORLDS):
        tasks = [calibrated(rng) for _ in range(NUM_TASKS)]
        one, other = ([squared_calibration_error(task[k], task[2]) for task in tasks] for k in (0, 1))
        rows = {"one": row(*one, squared_ce=one), "other": row(*other, squared_ce=other)}
        found.append(Interval(**of_means(rows, [0], "other")["one"]["differences"]["squared_ce"]))
    covered, significant = shares(found, 0.0)
    assert 0.93 <= covered <= 0.98
    assert significant <= 0.07
