"""Commands of several processes which share the language model and compute the same."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abmll.common.config import PlaceConfig
from abmll.common.errors import ConfigError


def by_all_processes(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, in each of the processes that share a base: all compute the same, the first writes and speaks.

    What the others write goes into a folder that is deleted afterwards.
    """

    @wraps(command)
    def run(
        *values: Any, place: PlaceConfig, output_dir: Path, quiet: bool = False, json: bool = False, **others: Any
    ) -> None:
        others |= {"place": place}
        if not place.shard_base:
            if (size := os.environ.get("WORLD_SIZE") or "1") != "1":
                raise ConfigError(
                    f"WORLD_SIZE is {size}, but '{command.__name__}' is for one process; start it by itself, or add "
                    "--shard-base"
                )
            return command(*values, output_dir=output_dir, quiet=quiet, json=json, **others)
        from abmll.cli.places import check_folder
        from abmll.common.processes import together

        with together() as processes, TemporaryDirectory() as folder:
            with processes.agreed():  # here, as the others write elsewhere and would wait for the first one
                if processes.is_first:
                    check_folder(output_dir, others.get("overwrite", False), "posterior")
            if processes.is_first:
                command(*values, output_dir=output_dir, quiet=quiet, json=json, **others)
            else:
                command(*values, output_dir=Path(folder) / "copy", quiet=True, json=False, **others)

    return run
