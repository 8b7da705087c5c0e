"""Thetas that come with the package: training runs on the embedded model, each under a name."""

from pathlib import Path

THETAS = Path(__file__).parent / "thetas"


def shipped_theta(name: Path | str) -> Path | None:
    """The folder of the theta that is called ``name``; None where there is none."""
    return next((folder for folder in THETAS.iterdir() if folder.name == str(name)), None)
