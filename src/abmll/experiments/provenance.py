"""Where a result comes from: versions, commit, command."""

import subprocess
from pathlib import Path
from typing import Any

from abmll.experiments.few_shot import versions


def origin(command: str) -> dict[str, Any]:
    """Versions of the packages, commit of the source where it is a checkout (with ``+`` after changes), command."""
    return {"versions": versions(), "commit": commit(), "command": command}


def commit() -> str | None:
    """The commit of this package's source; None where it is no checkout, or git is not there."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def _git(folder: Path, *words: str) -> str:
    run = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()
