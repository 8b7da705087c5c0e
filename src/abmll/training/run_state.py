"""A run's state in its checkpoints: theta, the optimizers' moments, and what they may be gone on with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from abmll.common.checkpoint import (
    PREFIX,
    STATE,
    Bundle,
    latest_checkpoint,
    load_bundle,
    refuse_other_base,
    save_bundle,
)
from abmll.common.errors import CheckpointError, ConfigError
from abmll.methods import Rule, State
from abmll.model.run_folder import RunFolder, refuse_other_run
from abmll.tasks.order import sample_seed


@dataclass(frozen=True)
class RunState:
    """The checkpoints in ``folder`` of a run with these ``settings``, by ``rule``."""

    folder: RunFolder
    rule: Rule[Any]
    settings: Mapping[str, Any]
    tasks: tuple[str, ...]  # names of the training tasks
    data_sha256: str
    validation_sha256: str | None

    def read(self) -> tuple[int, dict[str, Tensor]]:
        """Episodes and tensors of the newest checkpoint, for ``state``.

        The folder is touched only once all of it is accepted. Raises ``CheckpointError`` for a damaged one and for
        other data or another base, ``ConfigError`` for settings that would compute something else.
        """
        path = latest_checkpoint(self.folder.path)
        bundle = load_bundle(path, STATE)
        document, episode = bundle.document, bundle.document["episode"]
        refuse_other_run(document["settings"], self.settings, self.folder.path)
        base = self.rule.scorer.base
        refuse_other_base(document, base.is_known_by, base.name, path)
        if document["data_sha256"] != self.data_sha256:
            raise CheckpointError(f"{path}: the training tasks are not those the run began with; give the same --tasks")
        if document.get("validation_sha256") not in (None, self.validation_sha256):
            same = "give the same --eval-tasks, --eval-examples, --eval-test-examples and --eval-adapt-steps"
            raise CheckpointError(f"{path}: the run has been evaluated in another way so far; {same}")
        most = self.settings["max_steps"]
        if episode > most:
            raise ConfigError(f"max_steps is {most}, but {path} has done more; give {episode} or more")
        tensors = {f"{file}/{name}": one for file, some in bundle.tensors.items() for name, one in some.items()}
        self.state(episode, tensors)
        self.folder.resume(self.settings, episode)
        return episode, tensors

    def state(self, episode: int, tensors: Mapping[str, Tensor]) -> State:
        """The state after ``episode`` from tensors by ``file/name``; the fresh one where there are none.

        Raises ``CheckpointError`` where they do not fit.
        """
        theta, path = self.rule.scorer.new_adapter(sample_seed(self.settings["seed"], "init")), self.path(episode)
        if tensors:
            theta.load_state_dict(_of_file("theta", tensors), str(path / "theta.safetensors"))
        state = self.rule.init(theta)
        for name, optimizer in state.optimizers().items():
            optimizer.load_tensors(_of_file(name, tensors), str(path / f"{name}.safetensors"))
        return state

    def save(self, state: State, episode: int) -> Path:
        """Write a checkpoint; returns its folder."""
        moments = {name: optimizer.tensors() for name, optimizer in state.optimizers().items()}
        tensors = {"theta": state.theta.state_dict(), "optimizer_phi": {}} | moments
        document = {
            "episode": episode,
            "num_tasks": len(self.tasks),
            "tasks": list(self.tasks),
            "data_sha256": self.data_sha256,
            "validation_sha256": self.validation_sha256,
            "base_fingerprint": self.rule.scorer.base.fingerprint,
            "settings": dict(self.settings),
        }
        save_bundle(self.path(episode), Bundle(tensors, document), STATE, overwrite=True)
        return self.path(episode)

    def theta(self, episode: int) -> dict[str, Tensor]:
        """Theta's tensors after ``episode``."""
        return load_bundle(self.path(episode), STATE).tensors["theta"]

    def path(self, episode: int) -> Path:
        """The folder of the checkpoint after ``episode``."""
        return self.folder.path / f"{PREFIX}{episode}"


def _of_file(file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{file}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{file}/")}
