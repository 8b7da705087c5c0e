"""What a comparison would cost, against sums of the formulas that are tested by themselves."""

from dataclasses import replace
from typing import Any

import pytest

from abmll.common.config import EstimateConfig
from abmll.common.settings import flatten
from abmll.experiments.budget import SharedConfig
from abmll.experiments.cells import Cell
from abmll.experiments.costs import flops, load_shape, totals
from abmll.experiments.forecast import RowCost, forecast, stand_in
from abmll.experiments.method_spec import ComparisonConfig, defaults, parse_specs
from abmll.experiments.planning import plan
from abmll.experiments.task_shapes import AROUND, TaskShape, mean_tokens, task_shape
from abmll.tasks.definition import read_suite

FILE = replace(read_suite("winogrande"), train=("a", "b", "c"), evaluation=("d", "e"), validation=())
TOKENS = 400 // 4 + AROUND  # of tasks that are not known
SHARED: dict[str, Any] = {"model": "smollm2-135m", "dtype": "bf16", "max_steps": 7}
SHAPE = load_shape("smollm2-135m", EstimateConfig.target_modules, "top-6")


def costs(*methods: str, seeds: tuple[int, ...] = (0,), **settings: Any) -> list[RowCost]:
    shared = defaults() | flatten(SharedConfig()) | SHARED | settings
    cells: list[Cell] = plan(stand_in(FILE), ComparisonConfig(parse_specs(methods), seeds, shared, {}, {}, {}))
    return forecast(cells, FILE)


def config(batch: int = 1, tokens: int = TOKENS) -> EstimateConfig:
    return EstimateConfig(per_device_train_batch_size=batch, sequence_length=tokens)


def test_asking_is_a_forward_pass_a_question() -> None:
    [row] = costs("pretrained", seeds=(0, 1))
    assert (row.cells, row.runs, row.training_flops, row.memory) == (2, 0, 0, 0)
    assert row.unseen_flops == 2 * 2 * 300 * flops.forward_flops(SHAPE, config())


def test_training_is_episodes_of_steps_and_one_that_teaches_theta() -> None:
    [row] = costs("structured-lora")
    assert row.runs == 1
    assert row.training_flops == 7 * (5 + 1) * totals.abmll(SHAPE, config(4)).step_flops
    assert row.memory == totals.abmll(SHAPE, config(4)).memory.total
    steps = 10 * totals.abmll(SHAPE, config(2)).step_flops
    assert row.unseen_flops == 2 * (steps + 300 * flops.forward_flops(SHAPE, config()))


def test_second_order_episodes_are_their_own() -> None:
    [row] = costs("maml")
    assert row.training_flops == 7 * totals.maml(SHAPE, config(4)).episode_flops
    assert row.memory == totals.maml(SHAPE, config(4)).memory.total


def test_demonstrations_make_prompts_longer_until_the_limit() -> None:
    for limit, tokens in ((None, 5 * TOKENS), (300, 300)):
        [row] = costs("icl", max_length=limit)
        assert row.unseen_flops == 2 * 300 * flops.forward_flops(SHAPE, config(1, tokens))


def test_memory_is_that_of_the_longest_examples() -> None:
    [row] = costs("structured-lora", max_length=1000)
    assert row.memory == totals.abmll(SHAPE, config(4, 1000)).memory.total
    [published] = costs("abmll@paper-v3", max_length=1000)
    own = load_shape("smollm2-135m", EstimateConfig.target_modules, None)
    assert published.memory == totals.published(own, config(2, 1000)).memory.total


def test_a_run_is_counted_in_the_first_row_that_starts_from_it() -> None:
    regular, blob, ensemble = costs("regular-lora", "blob", "ensemble")
    assert (regular.runs, blob.runs, ensemble.runs) == (1, 0, 0)
    assert blob.training_flops == ensemble.training_flops == 0
    asking = 2 * 300 * flops.forward_flops(SHAPE, config())
    assert blob.unseen_flops - regular.unseen_flops == 3 * asking  # four samples
    assert ensemble.unseen_flops == 5 * regular.unseen_flops  # five members learn and answer
    assert regular.flops == regular.training_flops + regular.unseen_flops


def test_values_of_a_curve_are_cells() -> None:
    plain, curve = (costs("structured-lora", prune=prune)[0] for prune in ((0.0,), (0.0, 0.5, 0.9)))
    assert (plain.cells, curve.cells, curve.runs) == (1, 3, 1)
    assert curve.unseen_flops == 3 * plain.unseen_flops
    assert curve.training_flops == plain.training_flops


@pytest.mark.parametrize("name", ["cls-45", "mcqa", "legalbench", "chembench"])
def test_shapes_are_those_of_the_suites(name: str) -> None:
    suite = read_suite(name)
    for task in (*suite.train, *suite.evaluation):
        shape = task_shape(task)
        assert 2 <= shape.options <= 26
        assert 10 <= shape.characters <= 5000
    assert mean_tokens(suite.train, None) >= mean_tokens(suite.train, 60)
    assert mean_tokens(suite.train, 60) <= 60


def test_shape_of_a_task() -> None:
    assert task_shape("tweet_eval-emotion").options == 4
    assert task_shape("glue-mnli") == TaskShape(3, TaskShape().characters)
    assert task_shape("nobody-knows-it") == TaskShape()
