"""Stopping a training in the middle of an episode."""

from typing import Any

import pytest

from abmll import MetaTrainer
from abmll.methods import Loss


def interrupt(trainer: MetaTrainer, episode: int) -> None:
    """Run until Ctrl-C comes in the middle of ``episode`` (from 1)."""
    step, calls = trainer.rule.inner_step, iter(range(10**6))

    def inner_step(*args: Any) -> Loss:
        if next(calls) == 2 * episode - 1:
            raise KeyboardInterrupt
        return step(*args)

    vars(trainer.rule)["inner_step"] = inner_step
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
