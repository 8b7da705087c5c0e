"""The package's public face: its names, its laziness, its metadata files."""

import importlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import pytest

import abmll

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", abmll.__all__)
def test_public_names_load(name: str) -> None:
    assert getattr(abmll, name) is not None
    assert name in dir(abmll)


def test_lazy_names_are_the_public_ones() -> None:
    assert sorted(abmll._HOMES) == sorted(abmll.__all__)
    for name, home in abmll._HOMES.items():
        assert getattr(abmll, name) is getattr(importlib.import_module(home), name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'abmll' has no attribute 'nonsense'"):
        _ = abmll.nonsense


def test_import_is_cheap() -> None:
    code = "import sys, abmll, abmll.common.config; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_version_is_the_installed_one() -> None:
    try:
        assert abmll.__version__ == version("abmll")
    except PackageNotFoundError:
        assert abmll.__version__ == "0+unknown"


def test_package_data_is_there() -> None:
    assert (files("abmll") / "py.typed").is_file()
    assert (files("abmll") / "tasks" / "suites" / "bigbench-demo.yaml").is_file()
    assert (files("abmll") / "tasks" / "collections" / "crossfit.yaml").is_file()


def test_constraints_pin_every_requirement() -> None:
    """Installing with constraints.txt leaves none of the project's own requirements to chance."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    required = {name for name, _ in requirements()}
    assert {"torch", "transformers", "pytest", "pyright", "hatchling"} <= required
    assert required <= pins.keys()
    assert pins["torch"] == "2.13.0"


def test_requirements_have_lower_bounds_only() -> None:
    assert {bound[:2] for _, bound in requirements()} == {">="}
    assert not any(set("<~!,") & set(bound) for _, bound in requirements())


def requirements() -> list[tuple[str, str]]:
    """Name and version bounds of everything that pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"([a-z][a-z0-9-]+)(?:\[[a-z,]+\])?([<>=~!]=?[^"]*)"', text)
