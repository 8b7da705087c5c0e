"""AbmllModel on disk: a training run that has ended, as the trainer's own folder is read."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml
from torch import Tensor

from abmll.common.checkpoint import (
    PREFIX,
    STATE,
    Bundle,
    load_bundle,
    model_checkpoint,
    refuse_other_base,
    save_bundle,
)
from abmll.common.config import LearningConfig
from abmll.common.documents import Document
from abmll.common.errors import CheckpointError
from abmll.common.files import atomic_folder, write_text
from abmll.common.settings import flatten, pick
from abmll.model.run_folder import CONFIG, RunFolder
from abmll.posterior.calibration import CalibrationPrior
from abmll.posterior.hypotheses import HeadPrior

if TYPE_CHECKING:
    from abmll.model.meta_learner import AbmllModel


class SavedLearner(NamedTuple):
    """The newest checkpoint of a run, and the calibration's prior of after so many episodes."""

    path: Path
    document: Document
    theta: dict[str, Tensor]
    calibration: CalibrationPrior | None

    def load_into(self, model: "AbmllModel") -> None:
        """Make ``model``, which has the run's settings, the one that was saved.

        Raises ``CheckpointError`` where the run was trained on other weights, or its head's prior is none.
        """
        document = self.document
        base = model.scorer.base
        refuse_other_base(document, base.is_known_by, base.name, self.path)
        model.theta.load_state_dict(self.theta, str(self.path / "theta.safetensors"))
        learning = pick(LearningConfig, document["settings"])
        model.learned(model.theta, learning, document["num_tasks"], self.calibration)
        model.episodes, model.trained_on = document["episode"], tuple(document["tasks"])
        if "head_prior" in document:
            try:
                model.head_prior = HeadPrior.of(document["head_prior"])
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{self.path}: its head's prior cannot be used ({error})") from error


def read_learner(run: Path) -> SavedLearner:
    """What a run's folder has. Raises ``CheckpointError`` where it is damaged or no run."""
    path = model_checkpoint(run)
    bundle = load_bundle(path, STATE)
    calibration = RunFolder(run).calibration(bundle.document["episode"])
    return SavedLearner(path, bundle.document, bundle.tensors["theta"], calibration)


def write_learner(model: "AbmllModel", folder: Path, overwrite: bool) -> None:
    """Write ``model`` as a run with one checkpoint; it has no data and no moments, so that it cannot be resumed."""
    settings = model.scorer.settings() | flatten(model.learning)
    document = {
        "episode": model.episodes,
        "num_tasks": model.num_tasks,
        "tasks": list(model.trained_on),
        "data_sha256": None,
        "base_fingerprint": model.scorer.base.fingerprint,
        "settings": settings,
    }
    if model.head_prior != HeadPrior():
        document["head_prior"] = asdict(model.head_prior)
    bundle = Bundle({"theta": model.theta.state_dict(), "optimizer_phi": {}}, document)
    with atomic_folder(folder, overwrite) as target:
        save_bundle(target / f"{PREFIX}{model.episodes}", bundle, STATE)
        write_text(target / CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        if model.calibration_prior is not None:
            RunFolder(target).write_calibration(model.episodes, model.calibration_prior, {}, {})
