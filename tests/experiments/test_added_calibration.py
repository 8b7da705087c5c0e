"""Priors learned for cells whose model has none: which cells share one, and what it is learned with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from abmll.common.config import ContinuedConfig, EvaluateConfig
from abmll.common.settings import pick
from abmll.experiments.added_calibration import CalibrationPriors
from abmll.experiments.cells import Cell
from abmll.model.meta_learner import AbmllModel
from abmll.posterior.calibration import CalibrationPrior
from abmll.tasks import Task


@pytest.fixture
def add(
    tiny_model: AbmllModel, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[CalibrationPrior | None, list[str]]]:
    """A cell's prior, and the methods that the priors so far were learned with."""
    calibrations, taught = CalibrationPriors(quiet=True), list[str]()

    def learn(model: AbmllModel, tasks: Any, **more: Any) -> CalibrationPrior:
        taught.append(model.learning.method)
        return replace(CalibrationPrior(), mean=float(len(taught)))

    monkeypatch.setattr("abmll.experiments.added_calibration.learn_calibration_prior", learn)

    def make(cell: Cell) -> tuple[CalibrationPrior | None, list[str]]:
        tiny_model.learned(tiny_model.theta, pick(ContinuedConfig, dict(cell.settings) | {"seed": cell.seed}), 1)
        calibrations.add(tiny_model, cell, pick(EvaluateConfig, cell.settings), lambda: toy_tasks, None)
        return tiny_model.calibration_prior, taught

    return make


def test_a_theta_from_midway_has_one_prior_for_abmll_and_its_mixture(
    wanted: Callable[..., list[Cell]], add: Callable[..., tuple[CalibrationPrior | None, list[str]]]
) -> None:
    cells = wanted("abmll-mixture", "abmll", max_steps=20, save_steps=10, episodes=(10,))
    mixture, settings = cells[0], {"ensemble_size": 3}  # of the mixture alone
    cells[0] = replace(mixture, settings={**mixture.settings, **settings})
    midway = {cell.row: cell for cell in cells if cell.settings["episodes"] == 10}
    one, _ = add(midway["abmll-mixture"])
    other, taught = add(midway["abmll"])
    assert one == other is not None
    assert taught == ["abmll"]
    again, _ = add(replace(midway["abmll"], seed=1))
    assert (again == one, taught) == (False, ["abmll"] * 2)


def test_an_added_prior_is_learned_with_the_method_that_it_is_added_to(
    wanted: Callable[..., list[Cell]], add: Callable[..., tuple[CalibrationPrior | None, list[str]]]
) -> None:
    given = [add(cell) for cell in wanted("structured-lora", "regular-lora", "ensemble", recalibrate=("calibration",))]
    assert all(prior is not None for prior, _ in given)
    _, taught = given[-1]
    assert taught == ["structured-lora", "regular-lora", "ensemble"]
    assert add(wanted("reptile")[0]) == (None, ["structured-lora", "regular-lora", "ensemble"])  # not asked for
