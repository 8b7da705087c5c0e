"""Loading what a command line names: the language model of a run or posterior, possibly moved since."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from abmll.cli.console import narrator
from abmll.common.checkpoint import DOCUMENT, STATE, checkpoints, load_bundle, model_checkpoint
from abmll.common.config import AUTO_THETA, PLACES, QUANTIZATIONS, AdaptConfig, ContinueConfig, ModelConfig, PlaceConfig
from abmll.common.errors import CheckpointError, ConfigError
from abmll.common.settings import flatten, kinds_of, pick
from abmll.model.hub import find_folder
from abmll.model.learned_task import TaskPosterior
from abmll.model.shipped import meant_theta

if TYPE_CHECKING:
    from abmll.model.meta_learner import AbmllModel


def load_run(run: Path, place: PlaceConfig, quiet: bool) -> "AbmllModel":
    """The model of a training run: its folder, or its name on a hub."""
    from abmll.model.meta_learner import AbmllModel

    run = find_folder(run, announce=narrator(quiet))
    if (run / DOCUMENT).exists() and not checkpoints(run):
        raise CheckpointError(f"{run}: is what 'abmll adapt' wrote; give the folder of the training run it came from")
    settings = load_bundle(model_checkpoint(run), STATE).document["settings"]
    where = _placed(settings, place)
    return AbmllModel.from_pretrained(run, model=where, announce=narrator(quiet), quiet=quiet)


def load_learner(
    theta: Path | None,
    how: str | None,
    method: str | None,
    continued: ContinueConfig,
    place: PlaceConfig,
    quiet: bool,
    explicit: frozenset[str],
) -> "AbmllModel":
    """The model as it learns unseen tasks: that of a training run, or the language model as it was downloaded.

    ``how`` is head or full, by default full where settings of steps are given, else head; full learns by ``method``,
    or else by the one that is preferred, and ``AUTO_THETA`` is none for it. ``explicit`` are the settings that the user
    has given.
    Raises ``ConfigError`` for settings that do not go together, and for those of ``continued`` that are not read.
    """
    from abmll.methods import find_rule, preferred

    of_steps = explicit & {
        "method",
        "gradient_checkpointing",
        "compile",
        *kinds_of(AdaptConfig),
        *kinds_of(ContinueConfig),
    }
    if how is None:
        how = "full" if of_steps else "head"
    if how == "head":
        if of_steps:
            raise ConfigError(f"{min(of_steps)}: a head takes no gradient steps; leave it out, or add --adapt full")
        return load_for_head(theta, place, quiet)
    if not is_named(theta):
        raise ConfigError("adapt: full takes gradient steps from the theta of a training run; name one with --theta")
    model = load_run(theta, place, quiet)
    own = model.learning.method
    if find_rule(own).classifier is not None:
        raise ConfigError(f"adapt: {theta} is a run of {own}, which learns a task with a head; leave out --adapt full")
    method = method or preferred(own, model.scorer.adapter_config.space)
    learner = model if method == own else model.continue_as(method, **flatten(continued))
    _refuse_unread(method, continued)
    return learner


def load_for_head(theta: Path | None, place: PlaceConfig, quiet: bool) -> "AbmllModel":
    """The model with the theta that ``meant_by`` finds, or as it was downloaded, as it learns with a head."""
    from abmll.model.meta_learner import AbmllModel

    run = meant_by(theta, place)
    if run is not None:
        return load_run(run, place, quiet).with_head()
    config: dict[str, Any] = flatten(place) | {"model": place.model or ModelConfig.model}
    return AbmllModel.from_base(**config, announce=narrator(quiet), quiet=quiet)


def load_for_serving(theta: Path | None, place: PlaceConfig, quiet: bool) -> "AbmllModel":
    """The model with the theta that ``meant_by`` finds, or as it was downloaded."""
    run = meant_by(theta, place)
    return load_for_head(None, place, quiet) if run is None else load_run(run, place, quiet)


def is_named(theta: Path | None) -> TypeGuard[Path]:
    """Whether the user has named a training run."""
    return theta not in (None, Path(AUTO_THETA))


def meant_by(theta: Path | None, place: PlaceConfig) -> Path | None:
    """The training run that ``theta`` means, by its folder or name; None: the language model as it was downloaded."""
    is_quantized = any(getattr(place, name) for name in QUANTIZATIONS)
    meant = meant_theta(theta, place.model or ModelConfig.model, is_quantized)
    return None if meant is None else Path(meant)


def theta_name(theta: Path | None, place: PlaceConfig) -> str | None:
    """What the user calls the training run that ``meant_by`` finds; None where there is none."""
    run = meant_by(theta, place)
    if run is None:
        return None
    return str(theta) if is_named(theta) else run.name


def features_of(theta: Path | None, place: PlaceConfig) -> str:
    """Whose features a head reads, in words."""
    name = theta_name(theta, place)
    if name is None:
        return "the language model as it was downloaded"
    return f"theta {name}" if is_named(theta) else f"theta {name}, which comes with the package"


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
    """The posterior in ``folder``, which may be a name on a hub, or theta of a training run in that role.

    Its task is called ``task_name`` where that is given, else as it was in adaptation, or ``fallback`` for a run.
    """
    folder = find_folder(folder, announce=narrator(quiet))
    if not (folder / DOCUMENT).exists():
        return load_run(folder, place, quiet).theta_as_posterior(task_name or fallback)
    settings = load_bundle(folder, DOCUMENT).document["settings"]
    where = _placed(settings, place)
    posterior = TaskPosterior.from_pretrained(folder, model=where, announce=narrator(quiet), quiet=quiet)
    return replace(posterior, task_name=task_name or posterior.task_name)


def _placed(settings: dict[str, object], place: PlaceConfig) -> ModelConfig:
    """The saved model settings, with what the command line says instead."""
    saved = pick(ModelConfig, settings)
    dtype = saved.dtype if place.dtype == "auto" else place.dtype
    quantized = {name: getattr(place, name) for name in QUANTIZATIONS}
    chosen = quantized if any(quantized.values()) else {}
    lying: dict[str, Any] = {name: getattr(place, name) for name in PLACES}
    return replace(saved, model=place.model or saved.model, dtype=dtype, **lying, **chosen)
