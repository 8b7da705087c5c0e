"""Callbacks: what is to happen while ``MetaTrainer`` trains, beside training.

A callback sees the run and does not change it. What it raises ends the training; the last checkpoint stays.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abmll.training.trainer import TrainResult


class Callback:
    """Does nothing; override what you need. Episodes count from 1, and a resumed run goes on counting."""

    def on_start(self, settings: Mapping[str, Any]) -> None:
        """Training starts or goes on, with these flat settings; the run folder is ready."""

    def on_step(self, episode: int, metrics: Mapping[str, Any]) -> None:
        """An episode is done; ``metrics`` is its line of metrics.jsonl."""

    def on_evaluate(self, episode: int, metrics: Mapping[str, Any]) -> None:
        """theta has been evaluated on the validation tasks; ``metrics`` is the line of validation.jsonl."""

    def on_save(self, episode: int, folder: Path) -> None:
        """A checkpoint of after so many episodes is complete in ``folder``."""

    def on_end(self, result: "TrainResult | None") -> None:
        """Training is over, the calibration and the card too; ``None`` where an error or Ctrl-C has stopped it.

        Called once for every training, also for callbacks whose ``on_start`` was not reached.
        """


class Callbacks(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_start(self, settings: Mapping[str, Any]) -> None:
        self._each(lambda callback: callback.on_start(settings))

    def on_step(self, episode: int, metrics: Mapping[str, Any]) -> None:
        self._each(lambda callback: callback.on_step(episode, metrics))

    def on_evaluate(self, episode: int, metrics: Mapping[str, Any]) -> None:
        self._each(lambda callback: callback.on_evaluate(episode, metrics))

    def on_save(self, episode: int, folder: Path) -> None:
        self._each(lambda callback: callback.on_save(episode, folder))

    def on_end(self, result: "TrainResult | None") -> None:
        self._each(lambda callback: callback.on_end(result))

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            call(callback)
