"""Trackers: the metrics of a run, episode by episode, in TensorBoard, Weights & Biases or Trackio (``report_to``).

Each library is imported only when it is used, and through its own interface; the extra ``abmll[trackers]`` has them.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from abmll.common.errors import ConfigError
from abmll.model.run_folder import TENSORBOARD
from abmll.training.callbacks import Callback

PROJECT = "abmll"


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an episode, as ``train/nll`` and so on: trackers show what stands before the slash as a group."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {f"train/{name}": value for name, value in numbers.items() if name != "episode"}


def eval_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation that change, as ``eval/nll`` and ``eval/accuracy``."""
    return {f"eval/{name}": metrics[name] for name in ("nll", "accuracy")}


class TensorBoard(Callback):
    """Event files in the run folder. A part that is resumed supersedes what was written of its episodes before."""

    def __init__(self, library: Any, folder: Path) -> None:
        self.library, self.folder, self.writer = library, folder, None

    def on_step(self, episode: int, metrics: Mapping[str, Any]) -> None:
        self._add(episode, scalars(metrics))

    def on_evaluate(self, episode: int, metrics: Mapping[str, Any]) -> None:
        self._add(episode, eval_scalars(metrics))

    def _add(self, episode: int, numbers: Mapping[str, float]) -> None:
        if self.writer is None:
            self.writer = self.library.SummaryWriter(str(self.folder / TENSORBOARD), purge_step=episode)
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, episode)
        self.writer.flush()

    def on_end(self, result: Any) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Wandb(Callback):
    """A run of the project ``abmll`` with the run folder's name, whose local files lie in the run folder."""

    def __init__(self, library: Any, folder: Path) -> None:
        self.library, self.folder, self.run = library, folder, None

    def on_start(self, settings: Mapping[str, Any]) -> None:
        name = self.folder.resolve().name
        try:
            self.run = self.library.init(project=PROJECT, name=name, config=dict(settings), dir=str(self.folder))
        except self.library.Error as error:
            raise ConfigError(f"report_to: wandb: {error}; run 'wandb login', or set WANDB_MODE=offline") from error

    def on_step(self, episode: int, metrics: Mapping[str, Any]) -> None:
        if self.run is not None:
            self.run.log(scalars(metrics), step=episode)

    def on_evaluate(self, episode: int, metrics: Mapping[str, Any]) -> None:
        if self.run is not None:
            self.run.log(eval_scalars(metrics), step=episode)

    def on_end(self, result: Any) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if result else 1)
            self.run = None


class Trackio(Wandb):
    """The same in Trackio, which keeps its runs in a folder of its own and prints; ``--json`` needs standard output."""

    def on_start(self, settings: Mapping[str, Any]) -> None:
        with redirect_stdout(sys.stderr):
            self.run = self.library.init(
                project=PROJECT, name=self.folder.resolve().name, config=dict(settings), embed=False
            )

    def on_end(self, result: Any) -> None:
        if self.run is not None:
            with redirect_stdout(sys.stderr):
                self.library.finish()
            self.run = None


TRACKERS = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard"),
    "wandb": (Wandb, "wandb"),
    "trackio": (Trackio, "trackio"),
}


def trackers(report_to: str, folder: Path) -> tuple[Callback, ...]:
    """The tracker that the setting names, if any. Raises ``ConfigError`` where its library is not installed."""
    if report_to == "none":
        return ()
    tracker, module = TRACKERS[report_to]
    try:
        return (tracker(import_module(module), folder),)
    except ImportError as error:
        remedy = "install it with: pip install 'abmll[trackers]'"
        raise ConfigError(f"report_to: {report_to} is not installed ({error}); {remedy}") from error
