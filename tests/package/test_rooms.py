"""The house: ten rooms, imports that run downwards, one name for one module."""

from collections import Counter
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

PACKAGE = Path(__file__).parents[2] / "src" / "abmll"
ROOMS = ["cli", "serving", "experiments", "training", "model", "methods", "language", "posterior", "tasks", "common"]


def test_imports_run_downwards() -> None:
    config = PACKAGE.parents[1] / "pyproject.toml"
    assert lint_imports(config_filename=str(config), no_cache=True) == EXIT_STATUS_SUCCESS


def test_nothing_lies_loose_beside_the_rooms() -> None:
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == ["__init__", "__main__", "_version"]
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ROOMS}


def test_no_two_modules_share_a_name() -> None:
    modules = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("_")]
    folders = [path.parent.name for path in PACKAGE.glob("*/**/__init__.py")]
    assert [name for name, count in Counter(modules + folders).items() if count > 1] == []


def test_every_room_says_what_lives_in_it_and_where_to_start() -> None:
    for room in ROOMS:
        text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), room
        assert "Not here:" in text, room
        assert "Start with" in text, room
