"""A training run on disk: its resolved settings, its metrics line by line, its checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from abmll.common.bounded_yaml import read_yaml_text, yaml_value
from abmll.common.checkpoint import BEST, PREFIX, best_episode, checkpoints
from abmll.common.config import LATER, RunConfig, ValidationConfig
from abmll.common.documents import Document, json_lines, read_json, read_json_lines, write_document, write_json_lines
from abmll.common.errors import CheckpointError, ConfigError
from abmll.common.files import disk_errors, remove, write_text
from abmll.posterior.calibration import CalibrationPrior

CONFIG, METRICS, TIMING, CARD = "config.yaml", "metrics.jsonl", "timing.jsonl", "README.md"
VALIDATION = "validation.jsonl"  # a line an evaluation on the validation tasks
LINES = (METRICS, TIMING, VALIDATION)
CALIBRATION, TENSORBOARD = "calibration.json", "tensorboard"
REMEDY = "delete it, and --resume makes it again"
EVALUATED = "evaluation/metrics.json"
SHARED = (CONFIG, METRICS, TIMING, CALIBRATION, EVALUATED)  # what is pushed to a hub beside the newest checkpoint
EVALUATION = ("metrics.json", "predictions.jsonl", "report.html")
# What else a run replaced by another must not leave behind: it would be taken for the new run's.
RESULTS = (CARD, CALIBRATION, BEST, TENSORBOARD, "report.html", *(f"evaluation/{name}" for name in EVALUATION))
OF_EVERY_RUN = {"method", "output_dir", "max_steps"}  # settings
# Settings that may change between the parts of one run: they decide how long, where and what is shown, not what is
# computed. What the validation tasks are evaluated with is in the checkpoint's ``validation_sha256``.
FREE = {"output_dir", "calibration_tasks", "calibration_examples"} | {
    field.name for kind in (RunConfig, ValidationConfig) for field in fields(kind)
}


def refuse_other_run(old: Mapping[str, Any], new: Mapping[str, Any], where: Path) -> None:
    """Raise ``ConfigError`` where a run with settings ``old`` would go on with ``new`` and compute something else."""
    binding = new.keys() - FREE
    if new["lr_scheduler_type"] != "constant":
        binding |= {"max_steps"}  # the schedule's length
    if _keeps_activations(old) != _keeps_activations(new):
        # Activations computed alone and in a batch may differ in the last bit.
        binding |= {"activation_cache_gb", "activation_cache_dir"}
    for key, value in new.items():
        begun = old.get(key, LATER.get(key))
        if key in binding and begun != value:
            schedule = f", the length of its {new['lr_scheduler_type']} schedule" * (key == "max_steps")
            raise ConfigError(
                f"{where}: --resume with {key} = {value}, but the run has {key} = {begun}{schedule}; "
                "use the run's settings, or start a new run in another folder"
                + ", with lr_scheduler_type = constant if it is to go on later"
                * (key == "max_steps")
            )


def _keeps_activations(settings: Mapping[str, Any]) -> bool:
    return settings["activation_cache_gb"] > 0 or settings.get("activation_cache_dir") is not None


class RunFolder:
    """The files of one run in ``path``; each line of metrics belongs to one finished episode."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse_taken(self, overwrite: bool) -> None:
        """Raise ``ConfigError`` where the folder holds another run, or something that looks like one."""
        holds_run = self.is_run()
        if not holds_run and (self.path / CONFIG).exists():
            raise ConfigError(f"{self.path}: holds a {CONFIG} that is no run's; choose another folder")
        if holds_run and not overwrite:
            raise ConfigError(
                f"{self.path}: holds a run already; continue it with --resume or replace it with --overwrite"
            )
        for path in self._of_a_run():
            if not holds_run:
                raise ConfigError(f"{self.path}: holds {path.name}, but no {CONFIG} of a run; choose another folder")

    def is_run(self) -> bool:
        """Whether a run has begun here: its settings lie here, with checkpoints or metrics if they are damaged."""
        path = self.path / CONFIG
        if not path.is_file() or (self.path / METRICS).is_file() or checkpoints(self.path):
            return path.is_file()
        try:
            settings = yaml_value(read_yaml_text(path, CheckpointError), str(path), CheckpointError)
        except CheckpointError:
            return False
        return isinstance(settings, dict) and settings.keys() >= OF_EVERY_RUN

    def start(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Claim the folder for a new run. Raises ``ConfigError`` as ``refuse_taken``."""
        self.refuse_taken(overwrite)
        with disk_errors(self.path):
            for path in self._of_a_run():
                remove(path)
        self._claim(settings)

    def _of_a_run(self) -> list[Path]:
        """What a run leaves behind and another one must not find."""
        found = [*checkpoints(self.path).values(), *(self.path / name for name in (*LINES, *RESULTS))]
        return [path for path in found if path.exists()]

    def resume(self, settings: Mapping[str, Any], episode: int) -> None:
        """Go on after ``episode``: drop the lines of later episodes, and what was chosen at an earlier end."""
        there = [name for name in LINES if (self.path / name).exists()]
        kept = {name: [row for row in self.rows(name) if row["episode"] <= episode] for name in there}
        for name, rows in kept.items():
            write_json_lines(self.path / name, rows)
        remove(self.path / BEST)
        self._claim(settings)

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and clear away what a killed process left half written."""
        write_text(self.path / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        for name in (f"{PREFIX}*", f"{CONFIG}.*"):
            for unfinished in self.path.glob(f".{name}.tmp"):
                remove(unfinished)

    def rows(self, name: str = METRICS) -> list[Document]:
        """The whole lines of a JSON-lines file. Raises ``CheckpointError`` as ``read_json_lines``."""
        return [row for _, row in read_json_lines(self.path / name, "the file is damaged: delete that line")]

    def write_calibration(
        self, episode: int, prior: CalibrationPrior, settings: Mapping[str, int], cost: Mapping[str, float]
    ) -> None:
        """Keep theta's calibration of after so many episodes, the settings it was learned under, and what that took."""
        document = {"episode": episode, "prior": asdict(prior), "settings": dict(settings), "cost": dict(cost)}
        write_document(self.path / CALIBRATION, "calibration", document)

    def calibration(self, episode: int, settings: Mapping[str, int] | None = None) -> CalibrationPrior | None:
        """theta's calibration of after so many episodes, learned under these ``settings`` if they are given; else None.

        Raises ``CheckpointError`` for a damaged file.
        """
        document = self._calibration()
        if document.get("episode") != episode or settings not in (None, document.get("settings")):
            return None
        try:
            return CalibrationPrior(**document["prior"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path / CALIBRATION}: cannot be used ({error}); {REMEDY}") from error

    def cost(self, episodes: int | None = None) -> dict[str, float]:
        """Seconds, gradient steps, tokens and forward passes of all episodes or the first so many, and their number.

        All parts of an interrupted run count together, and what it took to learn the calibration after these episodes.
        Evaluations on validation tasks do not count.
        """
        rows = self.rows(TIMING)[:episodes]
        document, best = self._calibration(), best_episode(self.path) if episodes is None else None
        parts = [*rows, document["cost"]] if document.get("episode") == (best or len(rows)) else rows
        kinds = ("seconds", "steps", "tokens", "forward_passes")
        cost: dict[str, float] = {kind: sum(part.get(kind, 0) for part in parts) for kind in kinds}
        return {"episodes": len(rows), **cost}

    def _calibration(self) -> Document:
        """What the calibration's file holds; nothing where there is none."""
        path = self.path / CALIBRATION
        return read_json(path, "calibration", REMEDY) if path.exists() else {}

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSON-lines file."""
        path = self.path / name
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json_lines([row]))
