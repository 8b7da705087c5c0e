"""Statistics against what can be worked out by hand: moments, ranks, variances of the bootstrap, its errors."""

from typing import Any

import numpy as np
import pytest

from abmll.experiments.bootstrap import METRICS, bootstrap, difference, interval, make_sample
from abmll.experiments.metrics import Predictions, evaluate_task, mean_over_tasks, midranks, pooled
from abmll.experiments.statistics import estimate, over_seeds, task_ranks


def test_mean_and_standard_error() -> None:
    assert estimate([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3 / 3)))
    assert estimate([0.25]) == (0.25, None)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_what_a_seed_does_not_know_is_left_out() -> None:
    rows = [{"nll": 1.0, "auroc": None, "num_tasks": 3}, {"nll": 2.0, "auroc": 0.5, "num_tasks": 3}]
    mean, errors = over_seeds(rows)
    assert mean == {"nll": 1.5, "auroc": 0.5, "num_tasks": 3}
    assert errors == {"nll": pytest.approx(0.5), "auroc": None, "num_tasks": 0.0}
    assert over_seeds([{"auroc": None}]) == ({"auroc": None}, {"auroc": None})


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


def test_what_is_observed_are_the_metrics_of_the_project() -> None:
    tasks = world(np.random.default_rng(0), {"a": 0.5, "b": 1.5})
    observed = bootstrap(["a", "b"], [make_sample(task) for task in tasks], replicates=2).observed
    for m, method in enumerate("ab"):
        wanted: dict[str, list[float]] = {name: [] for name in METRICS}
        for seed in range(2):
            predictions = {
                str(t): Predictions(
                    [row["probs"] for row in task[method][seed]], [r["answer"] for r in task[method][seed]]
                )
                for t, task in enumerate(tasks)
            }
            means = mean_over_tasks({name: evaluate_task(*one) for name, one in predictions.items()})
            for name in METRICS[:-1]:
                wanted[name].append(means[name])
            wanted["pooled_ece"].append(pooled(predictions)["ece"])
        for name in METRICS:
            assert observed[name][m] == pytest.approx(np.mean(wanted[name]), abs=1e-12)


def test_variance_is_that_of_the_two_stages() -> None:
    """Var* = [mean over tasks of (m_t - m)^2 + mean over tasks of v_t / n_t] / T, exactly, for a mean of means."""
    sizes = (20, 30, 50, 80)
    rng = np.random.default_rng(1)
    tasks = [{"a": {0: answers(rng, size, skill)}} for size, skill in zip(sizes, (0.2, 0.8, 1.4, 2.5), strict=True)]
    samples = [make_sample(task) for task in tasks]
    drawn = bootstrap(["a"], samples, replicates=20_000).drawn
    for k, name in enumerate(("accuracy", "nll", "brier")):
        columns = [sample.features[:, 0, 0, k] for sample in samples]
        between = np.var([column.mean() for column in columns])
        within = np.mean([column.var() / len(column) for column in columns])
        assert drawn[name].var() == pytest.approx((between + within) / len(tasks), rel=0.05)
        assert drawn[name].mean() == pytest.approx(np.mean([column.mean() for column in columns]), abs=0.005)


def test_seeds_share_their_examples_draws() -> None:
    """The very same answers under three seeds are no more evidence than under one."""
    rows = answers(np.random.default_rng(2), 60, 1.0)
    once, thrice = (
        bootstrap(["a"], [make_sample({"a": dict.fromkeys(range(count), rows)})], replicates=500).drawn["nll"].var()
        for count in (1, 3)
    )
    assert thrice == pytest.approx(once, rel=1e-9)


def test_seeds_may_ask_different_examples() -> None:
    rng = np.random.default_rng(3)
    rows = {"a": {0: answers(rng, 30, 1.0), 1: answers(rng, 30, 1.0, first=20)}}
    sample = make_sample(rows)
    assert sample.present.sum(0).tolist() == [30, 30]
    assert len(sample.present) == 50
    nll = bootstrap(["a"], [sample], replicates=2).observed["nll"][0]
    assert nll == pytest.approx(np.mean([-np.log(r["probs"][r["answer"]]) for seed in (0, 1) for r in rows["a"][seed]]))


def test_methods_must_have_been_asked_the_same() -> None:
    rng = np.random.default_rng(4)
    for other in (answers(rng, 9, 1.0), answers(rng, 10, 1.0, first=1)):
        with pytest.raises(ValueError, match="not asked the same"):
            make_sample({"a": {0: answers(rng, 10, 1.0)}, "b": {0: other}})


def test_a_known_difference_is_found_and_covered() -> None:
    """Method b is method a but for every tenth example, where its answer is certain and wrong."""
    rng = np.random.default_rng(5)
    tasks = []
    for _ in range(8):
        good = [{"id": str(n), "probs": [0.9, 0.1], "answer": int(rng.random() < 0.1)} for n in range(200)]
        bad = [row | {"probs": [0.1, 0.9]} if n % 10 == 0 and not row["answer"] else row for n, row in enumerate(good)]
        tasks.append({"a": {0: good}, "b": {0: bad}})
    replicates = bootstrap(["a", "b"], [make_sample(task) for task in tasks])
    found = difference(replicates, "accuracy", "b", "a")
    assert found.low < -0.09 < found.high < 0
    assert found.p is not None
    assert found.p < 0.001
    same = difference(replicates, "accuracy", "a", "a")
    assert same == (0.0, 0.0, 0.0, 1.0)


def test_no_difference_is_seldom_found() -> None:
    """Both methods of one skill, tasks of all difficulties: at most a few of 80 worlds seem to differ."""
    significant = covered = 0
    for number in range(80):
        rng = np.random.default_rng([6, number])
        skills = rng.uniform(0.2, 2.0, size=8)
        tasks = [{m: {0: answers(rng, 25, skill)} for m in "ab"} for skill in skills]
        found = difference(bootstrap("ab", [make_sample(t) for t in tasks], number, 200), "nll", "a", "b")
        assert found.p is not None
        significant += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert significant <= 8  # five in a hundred would be 4
    assert covered >= 72


def test_draws_follow_from_the_seed() -> None:
    samples = [make_sample(task) for task in world(np.random.default_rng(7), {"a": 1.0, "b": 1.0})]
    one, again, other = (bootstrap("ab", samples, seed, 50).drawn["ece"] for seed in (0, 0, 1))
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
    found = interval(bootstrap("a", [make_sample(task) for task in tasks]), "pooled_ece", "a")
    assert found.low <= found.value <= found.high < 0.05
