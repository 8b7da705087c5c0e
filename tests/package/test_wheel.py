"""The release: a wheel that the package index takes, and that works where there is no repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from abmll.tasks import shipped_suites

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "abmll"


def run(*words: str, **where: object) -> str:
    """What a command prints; its stderr is shown where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **where)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution, and the wheel that is made from it, by their suffixes."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    # The wheel is made from the source distribution, which therefore lacks nothing.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return {path.suffix: path for path in folder.iterdir()}


def test_the_index_would_take_both(built: dict[str, Path]) -> None:
    pytest.importorskip("twine")
    shown = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, built.values()))
    assert shown.count("PASSED") == 2


def test_the_wheel_has_the_package_whole_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        fields = BytesParser().parsebytes(archive.read(metadata))
    files = {path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(SOURCE.parent).as_posix() for path in files}
    assert fields["License-Expression"] == "Apache-2.0"
    extras = set(fields.get_all("Provides-Extra", []))
    assert extras >= {"data", "docs", "excel", "laplace", "peft", "tune"}
    assert any(url.startswith("Documentation, https://") for url in fields.get_all("Project-URL", []))


def test_the_wheel_works_without_the_repository(built: dict[str, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run(*install, "--disable-pip-version-check", "--target", str(site), str(built[".whl"]))
    there = {**os.environ, "PYTHONPATH": str(site), "ABMLL_CACHE": str(tmp_path / "cache")}
    where = run(sys.executable, "-c", "import abmll; print(abmll.__file__)", cwd=tmp_path, env=there)
    assert Path(where.strip()).parent == site / "abmll"
    [version] = [path.stem.removeprefix("abmll-") for path in site.glob("abmll-*.dist-info")]
    script = next(path for path in (site / "bin").iterdir() if path.stem == "abmll")
    assert run(str(script), "--version", cwd=tmp_path, env=there) == f"abmll {version}\n"
    listed = run(sys.executable, "-m", "abmll", "tasks", "ls", cwd=tmp_path, env=there)
    assert all(f"{name} (suite): " in listed for name in shipped_suites())
    # The page needs its template and its style, which are no modules.
    shutil.copytree(ROOT / "results" / "cls-45", tmp_path / "compared")
    run(sys.executable, "-m", "abmll", "report", "compared", cwd=tmp_path, env=there)
    assert "<svg" in (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
