"""How much of a comparison fits: counted work, sizes within a limit, and a pace measured on a tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.common.config import ActivationCacheConfig, ModelConfig
from abmll.experiments.cell_runner import ResultFolder
from abmll.experiments.cells import Cell
from abmll.experiments.sizing import FLOOR, Pace, Work, count_work, fit, measure_pace
from abmll.tasks import Suite

FULL = {"max_steps": 30, "test_examples": 30}
PACE = Pace(episode=2.0, adaptation=3.0, question=0.25, reading_task=5.0, reading_question=0.5)


def test_work_is_that_of_every_method(wanted: Callable[..., list[Cell]]) -> None:
    suite: Suite = wanted.suite  # pyright: ignore[reportFunctionMemberAccess]
    cells = wanted("pretrained-adapted", "structured-lora", "abmll", "abmll-mixture", num_samples=[4])
    found = count_work(cells, suite, PACE)
    calibration = 2 * (5 + 3 + 20 * (0.5 + 4 * 0.25))  # two training tasks, twenty questions each
    assert found.fixed == pytest.approx(5 + (1 + 1 + 1 + 5) * 3 + calibration)
    assert found.episode == 2 * 2.0  # the mixture shares ABMLL's run
    assert found.question == pytest.approx(0.5 + (1 + 1 + 4 + 5) * 0.25)
    assert count_work(wanted("structured-lora"), suite, PACE).fixed == 5 + 3


def test_a_fast_machine_does_no_more_than_all_of_it() -> None:
    assert fit(Work(1, 1, 1), FULL, {}, 1000) == FULL


def test_a_slow_machine_does_what_fits_down_to_a_floor() -> None:
    work = Work(fixed=40, episode=10, question=2)
    size = fit(work, FULL, {}, 220)
    assert size == {"max_steps": 15, "test_examples": 15}
    assert work.seconds(size) == 220
    assert fit(work, FULL, {}, 30) == FLOOR
    assert fit(work, {"max_steps": 3, "test_examples": 30}, {}, 30) == {"max_steps": 3, "test_examples": 10}


def test_what_is_given_stays() -> None:
    work = Work(fixed=40, episode=10, question=2)
    assert fit(work, FULL, {"max_steps": 2}, 90) == {"max_steps": 2, "test_examples": 15}
    assert fit(work, FULL, {"test_examples": 99}, 90) == {"max_steps": 6, "test_examples": 99}
    assert fit(work, FULL, {"max_steps": 2, "test_examples": 1}, 1) == {"max_steps": 2, "test_examples": 1}


def test_a_pace_is_measured_and_leaves_nothing(
    wanted: Callable[..., list[Cell]], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite: Suite = wanted.suite  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(ResultFolder, "load_suite", lambda self: suite)
    small: dict[str, Any] = {"r": 2, "layers_to_transform": "1", "per_device_train_batch_size": 2, "num_samples": [2]}
    results = ResultFolder(
        tmp_path / "out", "toys", ModelConfig(str(tiny_llama), "fp32"), ActivationCacheConfig(), "abmll demo"
    )
    pace = measure_pace(wanted("abmll", **small), results, lambda line: None)
    assert min(pace.episode, pace.adaptation, pace.question) > 0
    assert min(pace.reading_task, pace.reading_question) >= 0
    assert not (tmp_path / "out").exists()
