"""A training run on disk: its resolved settings, its metrics line by line, its model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from abmll.checkpoint import checkpoints
from abmll.errors import CheckpointError, ConfigError
from abmll.files import disk_errors, write_text

CONFIG, METRICS, TIMING, REPORT, CARD = "config.yaml", "metrics.jsonl", "timing.jsonl", "report.html", "README.md"
# Settings that may change between the parts of one run: they decide how long and where, not what is computed.
FREE = {"max_steps", "save_steps", "save_total_limit", "output_dir", "trunk_cache_gb"}


class RunFolder:
    """The files of one run in ``path``; each line of metrics belongs to one finished visit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Claim the folder for a new run. Raises ``ConfigError`` where another run is in it."""
        if (self.path / CONFIG).exists() and not overwrite:
            raise ConfigError(
                f"{self.path}: holds a run already; continue it with --resume or replace it with --overwrite"
            )
        for checkpoint in checkpoints(self.path).values():
            shutil.rmtree(checkpoint)
        for name in (METRICS, TIMING, REPORT, CARD):
            (self.path / name).unlink(missing_ok=True)
        write_text(self.path / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def resume(self, settings: Mapping[str, Any], visit: int) -> None:
        """Go on after ``visit``: drop the lines of later visits. Raises ``ConfigError`` where a setting differs."""
        old = self.settings()
        for key, value in settings.items():
            if key not in FREE and old.get(key) != value:
                raise ConfigError(
                    f"{self.path}: --resume with {key} = {value}, but the run has {key} = {old.get(key)}; "
                    "use the same settings or start a new run"
                )
        write_text(self.path / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        for name in (METRICS, TIMING):
            rows = [row for row in self.rows(name) if row["visit"] <= visit]
            write_text(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))

    def settings(self) -> dict[str, Any]:
        """The run's ``config.yaml``. Raises ``CheckpointError`` where it is missing or no mapping."""
        path = self.path / CONFIG
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path}: no {CONFIG} in it; give the folder of a training run") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise CheckpointError(f"{path}: cannot be read; the file is damaged") from error
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path}: is not a mapping of settings; the file is damaged")
        return settings

    def rows(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The whole lines of a JSON-lines file; a last line cut short by a crash is left out."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSON-lines file."""
        path = self.path / name
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
