"""Training runs that are found again: finished ones are read, interrupted ones go on, others begin."""

from collections.abc import Sequence
from pathlib import Path

from abmll.common.checkpoint import PREFIX, STATE, checkpoints, latest_checkpoint, load_bundle, refuse_other_base
from abmll.common.config import LearningConfig, TrainConfig
from abmll.common.documents import read_json, write_document
from abmll.common.errors import AbmllError
from abmll.common.settings import flatten, pick
from abmll.language.activation_cache import ActivationCache
from abmll.language.meter import metered
from abmll.model.meta_learner import AbmllModel
from abmll.model.run_folder import RunFolder, refuse_other_run
from abmll.tasks import Task
from abmll.training.trainer import MetaTrainer

COST = "cost.json"  # a run without it was not finished by train_once


def train_once(
    model: AbmllModel,
    tasks: Sequence[Task],
    config: TrainConfig,
    cache: ActivationCache | None,
    quiet: bool,
    episodes: Sequence[int] = (),
) -> None:
    """Leave in the model the theta of the run in ``config.output_dir``.

    A run that was finished there under the same settings is read, one that was interrupted goes on, and any other one
    is replaced. Of a finished run the tasks are not looked at again: other tasks belong into another folder. Raises as
    ``MetaTrainer``.

    Args:
        episodes: those whose checkpoints are needed, for ``recall``; ``config.save_total_limit`` must leave room for
            them. A run that has deleted one of them is replaced.
    """
    folder = Path(config.output_dir)
    done = checkpoints(folder)
    deleted = [episode for episode in episodes if episode not in done and episode < max(done, default=0)]
    if not deleted and recall(model, config, len(tasks), config.max_steps):
        return
    trainer = MetaTrainer(model, tasks, config, cache)
    with metered(model.scorer) as cost:
        trainer.train(resume=not deleted and goes_on(trainer), overwrite=True, quiet=quiet)
    write_document(folder / COST, "peak", {"peak_memory_mb": cost.peak_memory_mb})


def goes_on(trainer: MetaTrainer) -> bool:
    """Whether the trainer's folder holds an interrupted run of the very same settings."""
    path, done = trainer.folder.path, checkpoints(trainer.folder.path)
    if not done or max(done) > trainer.config.max_steps:
        return False
    try:
        begun = load_bundle(latest_checkpoint(path), STATE).document
        refuse_other_run(begun["settings"], trainer.settings(), path)
    except AbmllError:  # other settings, or damaged: begin again
        return False
    return begun["data_sha256"] == trainer.data_sha256


def recall(model: AbmllModel, config: TrainConfig, num_tasks: int, episodes: int) -> bool:
    """Leave in the model the theta of a finished run after so many episodes, with its calibration after the last one.

    Returns False where there is none of these settings.

    Args:
        num_tasks: the number of tasks that the run has learned from.
    """
    folder = Path(config.output_dir)
    path = folder / f"{PREFIX}{episodes}"
    if not path.is_dir() or not (folder / COST).is_file():
        return False
    try:
        bundle = load_bundle(path, STATE)
        settings = bundle.document["settings"]
        refuse_other_run(settings, model.scorer.settings() | flatten(config), folder)
        base = model.scorer.base
        refuse_other_base(bundle.document, base.is_known_by, base.name, path)
        theta = model.scorer.new_adapter(0)
        theta.load_state_dict(bundle.tensors["theta"], str(path / "theta.safetensors"))
        calibration = RunFolder(folder).calibration(episodes)
    except AbmllError:  # other settings, or damaged
        return False
    model.learned(theta, pick(LearningConfig, flatten(config)), num_tasks, calibration)
    return True


def cost_of_run(folder: Path, episodes: int | None = None) -> dict[str, float | None]:
    """What a run, or its first ``episodes``, has cost: see ``RunFolder.cost``; the peak memory is that of the whole."""
    cost = RunFolder(folder).cost(episodes)
    path = folder / COST
    peak = read_json(path, "peak", "delete the folder")["peak_memory_mb"] if path.exists() else None
    return {**cost, "gradient_steps": cost.pop("steps"), "peak_memory_mb": peak}


def no_cost() -> dict[str, float | None]:
    """The cost of a training that does not take place."""
    kinds = ("seconds", "episodes", "gradient_steps", "tokens", "forward_passes")
    return {**dict.fromkeys(kinds, 0), "peak_memory_mb": None}
