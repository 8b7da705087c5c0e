"""Loading what a command line names: the language model of a run or posterior, possibly moved since."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from abmll.checkpoint import STATE, latest_checkpoint, load_bundle
from abmll.cli.output import narrator
from abmll.config import ModelConfig, PlaceConfig
from abmll.errors import CheckpointError, ConfigError
from abmll.settings import pick
from abmll.task_posterior import DOCUMENT, TaskPosterior

if TYPE_CHECKING:
    from abmll.model import AbmllModel


def load_run(run: Path, place: PlaceConfig, quiet: bool) -> "AbmllModel":
    """The model of a training run."""
    from abmll.model import AbmllModel

    settings = load_bundle(latest_checkpoint(run), STATE).document["settings"]
    where = _placed(settings, place)
    return AbmllModel.from_pretrained(run, model=where, announce=narrator(quiet), quiet=quiet)


def load_posterior(folder: Path, task_name: str | None, place: PlaceConfig, quiet: bool) -> TaskPosterior:
    """The posterior in ``folder``; of a training run, theta in that role, under ``task_name``."""
    if (folder / DOCUMENT).exists():
        settings = load_bundle(folder, DOCUMENT).document["settings"]
        where = _placed(settings, place)
        return TaskPosterior.from_pretrained(folder, model=where, announce=narrator(quiet), quiet=quiet)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a training run or what 'abmll adapt' wrote")
    return load_run(folder, place, quiet).theta_as_posterior(task_name or "task")


def refuse_filled(path: Path, overwrite: bool) -> None:
    """Raise ``ConfigError`` where output would replace something, before any work is done for it."""
    filled = any(path.iterdir()) if path.is_dir() else path.exists()
    if filled and not overwrite:
        raise ConfigError(f"{path} exists already; choose another place or say --overwrite")


def _placed(settings: dict[str, object], place: PlaceConfig) -> ModelConfig:
    """The saved model settings, with what the command line says instead."""
    saved = pick(ModelConfig, settings)
    dtype = saved.dtype if place.dtype == "auto" else place.dtype
    return replace(saved, model=place.model or saved.model, dtype=dtype, device=place.device)
