"""Examples and notebooks run as they stand there, with the embedded model, and all of them are in the documentation."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
PRINTED = {
    "adapt_and_save": r"\d+ of 32 right, mean entropy [01]\.\d\d nats\n",
    "classify": r"(0\.\d\d (account|billing|bug|delivery) +.+\n){12}",
    "compare_two": r"head +accuracy .*\nlinear-probe +accuracy .*\n",
    "export_to_peft": r"PEFT loaded 8 tensors\n",
    "suggest_next": r"(.+\n){4}",
}
# transformers warns of what PEFT asks it.
PEFT = ["-W", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"]


def run(words: list[str], folder: Path) -> str:
    """What a command prints, in a folder of its own."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=600, cwd=folder, env=here)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.real_model
@pytest.mark.parametrize("name", PRINTED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name == "export_to_peft":
        pytest.importorskip("peft")
    shown = run(["-W", "error", *PEFT, str(EXAMPLES / f"{name}.py")], tmp_path)
    assert re.fullmatch(PRINTED[name], shown), shown


def test_every_example_is_run_and_shown() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PRINTED, "ray_serve"}  # that one by tests/serving
    page = (ROOT / "docs" / "howto" / "examples.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.py"), *NOTEBOOKS]:
        assert f"{path.relative_to(ROOT).as_posix()}" in page


@pytest.mark.real_model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    """By nbmake, in a process of its own: notebooks are no part of the test folders."""
    pytest.importorskip("nbmake")
    pytest.importorskip("ipykernel")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    words = ["-m", "pytest", "-q", "--nbmake", "--nbmake-timeout=500", "-p", "no:cacheprovider", "-c"]
    assert "1 passed" in run([*words, str(tmp_path / "pytest.ini"), "--rootdir", str(ROOT), str(path)], tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
