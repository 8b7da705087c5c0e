"""Language models that all estimators of one process share.

A cross-validation makes a new estimator for every fit, and has only its parameters to make it of. So what is loaded is
kept by what it was loaded from, in caches of the functions that load it. They are small: a process that goes on to a
third language model gives up the first, unless an estimator still holds it.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import RLock

from abmll.common.checkpoint import MANIFEST, STATE, load_bundle, model_checkpoint
from abmll.common.config import AdapterConfig, ModelConfig, PromptConfig
from abmll.common.documents import Document
from abmll.common.settings import flatten, pick
from abmll.language.base import Base, load_base, resolve_device, resolve_dtype
from abmll.language.scorer import OptionScorer
from abmll.model.meta_learner import AbmllModel
from abmll.model.shipped import meant_theta, shipped_theta

# Held while a shared model is loaded or reads: two threads must neither load it twice nor read with it at once, as its
# layers keep what belongs to the pass that goes through them.
IN_USE = RLock()


def shared_learner(model: str, theta: str | None, device: str) -> AbmllModel:
    """The language model of that name or folder with a fresh adapter, or that of the training run in folder ``theta``.

    ``theta`` is as for ``meant_theta``; with a run the default's name means the model that it was trained on.
    """
    meant = meant_theta(theta, model, False)
    if meant is None:
        return _fresh(_resolved(ModelConfig(model, device=device)))
    folder = Path(meant).expanduser().resolve()
    checkpoint = model_checkpoint(folder if folder.is_dir() else shipped_theta(meant) or folder)
    return _trained(checkpoint, (checkpoint / MANIFEST).stat().st_mtime_ns, model, device)


def shared_scorer(settings: Document, model: str, is_trained: bool, device: str) -> OptionScorer:
    """What a posterior with these ``settings`` was learned on; ``model`` and ``device`` as for ``shared_learner``."""
    place = _placed(pick(ModelConfig, settings), model, is_trained, device)
    return _scorer(place, pick(AdapterConfig, settings), pick(PromptConfig, settings))


def forget() -> None:
    """Let go of all that is kept here."""
    for cached in (_base, _fresh, _trained, _scorer):
        cached.cache_clear()


@lru_cache(maxsize=2)
def _base(config: ModelConfig) -> Base:
    return load_base(config, lambda line: None, quiet=True)


@lru_cache(maxsize=2)
def _fresh(config: ModelConfig) -> AbmllModel:
    return AbmllModel.from_base(_base(config).twin())


@lru_cache(maxsize=2)
def _trained(checkpoint: Path, changed: int, model: str, device: str) -> AbmllModel:
    """The model of the run that wrote ``checkpoint``; when that was ``changed`` tells an overwritten one apart."""
    saved = pick(ModelConfig, load_bundle(checkpoint, STATE).document["settings"])
    base = _base(_placed(saved, model, True, device))
    return AbmllModel.from_pretrained(checkpoint.parent, model=base.twin())


@lru_cache(maxsize=4)
def _scorer(config: ModelConfig, adapter: AdapterConfig, prompt: PromptConfig) -> OptionScorer:
    return OptionScorer(_base(config).twin(), adapter, prompt)


def _placed(saved: ModelConfig, model: str, is_trained: bool, device: str) -> ModelConfig:
    """The language model as it was saved, or as it is named now."""
    name = saved.model if is_trained and model == ModelConfig.model else model
    return _resolved(replace(saved, model=name, device=device))


def _resolved(config: ModelConfig) -> ModelConfig:
    """The same with what ``auto`` means here, so that one model has one name."""
    device = resolve_device(config.device)
    known = {"dtype": resolve_dtype(config.dtype, device), "device": str(device)}
    return pick(ModelConfig, flatten(config) | known)
