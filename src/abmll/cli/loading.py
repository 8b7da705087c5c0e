"""Loading what a command line names: the language model of a run or posterior, possibly moved since."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from abmll.cli.console import narrator
from abmll.common.checkpoint import DOCUMENT, STATE, checkpoints, latest_checkpoint, load_bundle
from abmll.common.config import ContinueConfig, ModelConfig, PlaceConfig
from abmll.common.errors import CheckpointError, ConfigError, nearest
from abmll.common.settings import flatten, pick
from abmll.model.learned_task import TaskPosterior

if TYPE_CHECKING:
    from abmll.model.meta_learner import AbmllModel


def load_run(run: Path, place: PlaceConfig, quiet: bool) -> "AbmllModel":
    """The model of a training run."""
    from abmll.model.meta_learner import AbmllModel

    _refuse_missing(run)
    if (run / DOCUMENT).exists() and not checkpoints(run):
        raise CheckpointError(f"{run}: is what 'abmll adapt' wrote; give the folder of the training run it came from")
    settings = load_bundle(latest_checkpoint(run), STATE).document["settings"]
    where = _placed(settings, place)
    return AbmllModel.from_pretrained(run, model=where, announce=narrator(quiet), quiet=quiet)


def load_learner(
    run: Path, method: str | None, continued: ContinueConfig, place: PlaceConfig, quiet: bool
) -> "AbmllModel":
    """The model of a training run as it learns unseen tasks: by ``method``, or else by the one that is preferred.

    Raises ``ConfigError`` for settings of ``continued`` that this method does not read.
    """
    from abmll.methods import preferred

    model = load_run(run, place, quiet)
    own = model.learning.method
    method = method or preferred(own, model.scorer.adapter_config.space)
    learner = model if method == own else model.continue_as(method, **flatten(continued))
    _refuse_unread(method, continued)
    return learner


def _refuse_unread(method: str, continued: ContinueConfig) -> None:
    from abmll.methods import REGISTRY

    usual = flatten(ContinueConfig())
    for name, value in flatten(continued).items():
        if value != usual[name] and name not in REGISTRY[method].settings_read:
            able = [other for other, rule in REGISTRY.items() if name in rule.settings_read]
            raise ConfigError(f"{name}: {method} does not read it; leave it out, or use --method {' or '.join(able)}")


def load_posterior(
    folder: Path, task_name: str | None, fallback: str, place: PlaceConfig, quiet: bool
) -> TaskPosterior:
    """The posterior in ``folder``, or theta of a training run in that role.

    Its task is called ``task_name`` where that is given, else as it was in adaptation, or ``fallback`` for a run.
    """
    _refuse_missing(folder)
    if not (folder / DOCUMENT).exists():
        return load_run(folder, place, quiet).theta_as_posterior(task_name or fallback)
    settings = load_bundle(folder, DOCUMENT).document["settings"]
    where = _placed(settings, place)
    posterior = TaskPosterior.from_pretrained(folder, model=where, announce=narrator(quiet), quiet=quiet)
    return replace(posterior, task_name=task_name or posterior.task_name)


def _refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        raise CheckpointError(
            f"{folder}: {what}.{nearest(folder.name, siblings)} Give what 'abmll train' or 'abmll adapt' wrote"
        )


def _placed(settings: dict[str, object], place: PlaceConfig) -> ModelConfig:
    """The saved model settings, with what the command line says instead."""
    saved = pick(ModelConfig, settings)
    dtype = saved.dtype if place.dtype == "auto" else place.dtype
    return replace(saved, model=place.model or saved.model, dtype=dtype, device=place.device)
