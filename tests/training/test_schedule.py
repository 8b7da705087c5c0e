"""The learning rates' factor over the episodes."""

import pytest

from abmll.common.config import LearningConfig
from abmll.training.schedule import rate


def rates(max_steps: int, **settings: object) -> list[float]:
    config = LearningConfig(**settings)  # pyright: ignore[reportArgumentType]
    return [rate(config, episode, max_steps) for episode in range(max_steps)]


def test_constant() -> None:
    assert rates(3, lr_scheduler_type="constant") == [1.0, 1.0, 1.0]


def test_linear_falls_towards_zero_after_the_last_episode() -> None:
    assert rates(4, lr_scheduler_type="linear") == [1.0, 0.75, 0.5, 0.25]


def test_cosine() -> None:
    assert rates(3, lr_scheduler_type="cosine") == pytest.approx([1.0, 0.75, 0.25])


def test_warmup_rises_from_the_first_episode_on_and_is_followed_by_the_schedule() -> None:
    expected = [1 / 3, 2 / 3, 1.0, 0.5]
    assert rates(4, lr_scheduler_type="linear", warmup_steps=2) == pytest.approx(expected)
    assert rates(4, lr_scheduler_type="constant", warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warmup_longer_than_the_run_stays_above_zero(kind: str) -> None:
    assert all(0 < value < 1 for value in rates(2, lr_scheduler_type=kind, warmup_steps=5))
