"""Statistics against what can be worked out by hand: moments, intervals, ranks, and the bootstrap of pooled errors."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from abmll.experiments.bootstrap import Sample, bootstrap, difference, interval, make_sample
from abmll.experiments.metrics import Predictions, midranks, pooled
from abmll.experiments.statistics import estimate, over_seeds, t_interval, task_ranks


def test_mean_and_standard_error() -> None:
    assert estimate([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3 / 3)))
    assert estimate([0.25]) == (0.25, None)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


@pytest.mark.parametrize("values", [[0.1, 0.4], [-0.2, -0.3, -0.15, 0.4, -0.5], [1.0, 1.5, 1.25]])
def test_the_t_interval(values: list[float]) -> None:
    theirs: Any = ttest_1samp(values, 0.0)
    ends = theirs.confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((np.mean(values), ends.low, ends.high, theirs.pvalue))


def test_the_t_interval_of_one_task_and_of_equal_ones() -> None:
    assert t_interval([0.3]) == (0.3, None, None, None)
    assert t_interval([0.25, 0.25]) == (0.25, 0.25, 0.25, 0.0)
    assert t_interval([0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_what_a_seed_does_not_know_is_left_out() -> None:
    rows = [{"nll": 1.0, "auroc": None, "num_tasks": 3}, {"nll": 2.0, "auroc": 0.5, "num_tasks": 3}]
    mean, errors = over_seeds(rows)
    assert mean == {"nll": 1.5, "auroc": 0.5, "num_tasks": 3}
    assert errors == {"nll": pytest.approx(0.5), "auroc": None, "num_tasks": 0.0}
    assert over_seeds([{"auroc": None}]) == ({"auroc": None}, {"auroc": None})
    assert over_seeds([{"nll": 1.0, "new": 2.0}, {"nll": 1.0}])[0] == {"nll": 1.0}


def test_ranks() -> None:
    assert midranks(np.array([0.3, 0.1, 0.3, 0.2])).tolist() == [3.5, 1, 3.5, 2]
    values = {"a": {"t": 0.9, "u": 0.5, "v": 0.1}, "b": {"t": 0.8, "u": 0.5}, "c": {"t": 0.7, "u": 0.6}}
    high = {"a": {"t": 1.0, "u": 2.5}, "b": {"t": 2.0, "u": 2.5}, "c": {"t": 3.0, "u": 1.0}}
    assert task_ranks(values, "higher") == high
    low = {method: {task: 4 - place for task, place in own.items()} for method, own in high.items()}
    assert task_ranks(values, "lower") == low
    assert task_ranks({"a": {"t": 1.0}, "b": {"u": 1.0}}, "lower") == {"a": {}, "b": {}}


def answers(rng: np.random.Generator, count: int, skill: float, first: int = 0) -> list[dict[str, Any]]:
    """Rows of one method under one seed: three options, ``skill`` added to the right one's logit."""
    rows = []
    for number in range(first, first + count):
        answer = int(rng.integers(3))
        logits = rng.normal(size=3) + skill * np.eye(3)[answer]
        probs = np.exp(logits) / np.exp(logits).sum()
        rows.append({"id": str(number), "probs": probs.tolist(), "answer": answer})
    return rows


def world(rng: np.random.Generator, skills: dict[str, float], tasks: int = 6, count: int = 40, seeds: int = 2) -> list:
    """Rows by task, method and seed."""
    return [
        {method: {seed: answers(rng, count, skill) for seed in range(seeds)} for method, skill in skills.items()}
        for _ in range(tasks)
    ]


def test_what_is_observed_is_the_pooled_error_of_the_metrics() -> None:
    tasks = world(np.random.default_rng(0), {"a": 0.5, "b": 1.5})
    observed = bootstrap(["a", "b"], [make_sample(task) for task in tasks], replicates=2).observed
    for m, method in enumerate("ab"):
        wanted = []
        for seed in range(2):
            predictions = {
                str(t): Predictions([r["probs"] for r in task[method][seed]], [r["answer"] for r in task[method][seed]])
                for t, task in enumerate(tasks)
            }
            wanted.append(pooled(predictions)["ece"])
        assert observed[m] == pytest.approx(np.mean(wanted), abs=1e-12)


def test_variance_is_that_of_the_two_stages() -> None:
    """With one bin and no gap of changing sign the error is a mean of means, of tasks of equal size.

    Var* = [mean over tasks of (m_t - m)^2 + mean over tasks of v_t / n] / T, exactly.
    """
    rng = np.random.default_rng(1)
    gaps = [rng.uniform(0, 1, size=50) ** power for power in (0.5, 1, 2, 4)]
    samples = [Sample(np.pad(own[:, None, None, None], [(0, 0)] * 3 + [(0, 14)]), np.ones((50, 1))) for own in gaps]
    drawn = bootstrap(["a"], samples, replicates=20_000).drawn
    between, within = np.var([own.mean() for own in gaps]), np.mean([own.var() / 50 for own in gaps])
    assert drawn.var() == pytest.approx((between + within) / 4, rel=0.05)
    assert drawn.mean() == pytest.approx(np.mean(gaps), abs=0.005)


def test_seeds_share_their_examples_draws() -> None:
    """The very same answers under three seeds are no more evidence than under one."""
    rows = answers(np.random.default_rng(2), 60, 1.0)
    once, thrice = (
        bootstrap(["a"], [make_sample({"a": dict.fromkeys(range(count), rows)})], replicates=500).drawn.var()
        for count in (1, 3)
    )
    assert thrice == pytest.approx(once, rel=1e-9)


def test_seeds_may_ask_different_examples() -> None:
    rng = np.random.default_rng(3)
    rows = {"a": {0: answers(rng, 30, 1.0), 1: answers(rng, 30, 1.0, first=20)}}
    sample = make_sample(rows)
    assert sample.present.sum(0).tolist() == [30, 30]
    assert len(sample.present) == 50
    error = bootstrap(["a"], [sample], replicates=2).observed[0]
    alone = [bootstrap(["a"], [make_sample({"a": {0: rows["a"][seed]}})], replicates=2).observed[0] for seed in (0, 1)]
    assert error == pytest.approx(np.mean(alone))


def test_methods_must_have_been_asked_the_same() -> None:
    rng = np.random.default_rng(4)
    for other in (answers(rng, 9, 1.0), answers(rng, 10, 1.0, first=1)):
        with pytest.raises(ValueError, match="not asked the same"):
            make_sample({"a": {0: answers(rng, 10, 1.0)}, "b": {0: other}})


def test_a_known_difference_is_found_and_covered() -> None:
    """Method a is right as often as it is confident, method b says so of every answer with .99."""
    rng = np.random.default_rng(5)
    tasks = []
    for _ in range(8):
        right = rng.random(200) < 0.8
        rows = [{"id": str(n), "probs": [0.8, 0.2], "answer": 1 - int(r)} for n, r in enumerate(right)]
        tasks.append({"a": {0: rows}, "b": {0: [row | {"probs": [0.99, 0.01]} for row in rows]}})
    replicates = bootstrap(["a", "b"], [make_sample(task) for task in tasks])
    found = difference(replicates, "b", "a")
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert 0 < found.low < 0.19 < found.high < 0.25
    assert found.p < 0.001
    assert difference(replicates, "a", "a") == (0.0, 0.0, 0.0, 1.0)


def test_draws_follow_from_the_seed() -> None:
    samples = [make_sample(task) for task in world(np.random.default_rng(7), {"a": 1.0, "b": 1.0})]
    one, again, other = (bootstrap("ab", samples, seed, 50).drawn for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.dtype == np.float64


def test_an_interval_surrounds_what_was_observed() -> None:
    rng = np.random.default_rng(8)
    tasks = []
    for _ in range(5):
        confidence = rng.uniform(0.5, 1.0, size=300)
        right = rng.random(300) < confidence
        pairs = enumerate(zip(confidence, right, strict=True))
        tasks.append({"a": {0: [{"id": str(n), "probs": [c, 1 - c], "answer": 1 - int(r)} for n, (c, r) in pairs]}})
    found = interval(bootstrap("a", [make_sample(task) for task in tasks]), "a")
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high < 0.05
