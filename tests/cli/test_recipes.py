"""The paper's recipes: what they say, what they cost, and every one of them rehearsed."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.cli.settings_file import RECIPES, recipes
from abmll.experiments.markdown import REHEARSED
from abmll.methods import REGISTRY
from abmll.tasks.definition import read_suite

Call = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
QWEN = "Qwen/Qwen2-7B-Instruct"
MEMORY = 78e9  # of a GPU of 80 GB, without what driver and allocator take


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))


def settings_of(abmll: Call, recipe: str, *flags: str) -> dict[str, Any]:
    code, out, err = abmll(f"compare --config {recipe} --print-config", *flags)
    assert (code, err) == (0, "")
    return yaml.safe_load(out)


@pytest.mark.parametrize("recipe", recipes())
def test_what_recipes_have_in_common(recipe: str, abmll: Call) -> None:
    found = settings_of(abmll, recipe)
    assert found["seeds"] == [0, 1, 2]
    assert found["output_dir"] == f"runs/recipes/{recipe}"
    assert found["model"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert settings_of(abmll, recipe, f"--model {QWEN}") == found | {"model": QWEN}
    assert recipe == "pruning" or found["methods"][0] == "all"
    # visits are whole, and a checkpoint is written at the end
    assert found["max_steps"] % len(read_suite(found["suite"]).train) == 0
    assert found["max_steps"] % found["save_steps"] == 0


@pytest.mark.parametrize("recipe", recipes())
def test_every_row_fits_the_gpu(recipe: str, abmll: Call) -> None:
    for model in ("", f"--model {QWEN}"):
        code, out, _ = abmll(f"compare --config {recipe} --dry-run --json", model)
        assert code == 0
        found = json.loads(out)
        assert max(row["memory"] for row in found["rows"]) < MEMORY
        assert recipe == "pruning" or len(found["rows"]) >= len(REGISTRY)
        assert 3 * found["hours"]["h100"] < found["hours"]["a100"] < 4 * found["hours"]["h100"]
        shown = re.findall(rf"^\| `{recipe}` \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        assert any(f" {found['hours']['h100']:.0f} " in row for row in shown)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("few_chains")
@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_runs_as_a_rehearsal(recipe: str, abmll: Call) -> None:
    rows = ["abmll", *(row for row in settings_of(abmll, recipe)["methods"] if "@" in row)]
    if recipe != "winogrande":  # what the others add are suites, lengths and curves
        rows = ["abmll", "reptile@paper-v3"] if recipe == "pruning" else ["abmll@paper-v3", "abmll-icl@paper-v3"]
    flags = f"--methods {','.join(rows)} --seeds 0 --device cpu"
    code, out, _ = abmll(f"compare --config {recipe} --smoke {flags}")
    assert code == 0
    folder = Path(f"runs/recipes/{recipe}-smoke")
    found = json.loads((folder / "comparison.json").read_text())
    assert list(found["methods"]) == rows
    assert found["suite"].endswith("-smoke")
    assert not Path(f"runs/recipes/{recipe}").exists()
    # nothing of it can be taken for a result
    assert REHEARSED in out
    assert REHEARSED in (folder / "table.md").read_text()
    assert "no results" in (folder / "report.html").read_text()
    assert "Published" not in out
    if recipe == "pruning":
        assert [point["value"] for point in found["methods"]["abmll"]["curves"]["prune"]] == [0, 0.1, 0.2, 0.3]


def test_a_rehearsal_goes_on_where_it_was_and_takes_the_architecture(abmll: Call) -> None:
    command = f"compare --config limited --smoke --seeds 0 --model {QWEN} --methods pretrained"
    assert abmll(command).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("cells/*/*")}
    assert len(before) == 2
    assert abmll(command).code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("cells/*/*")} == before
    config = json.loads(Path("runs/recipes/limited-smoke/model/config.json").read_text())
    assert config["model_type"] == "qwen2"


def test_a_file_goes_before_a_recipe_and_may_include_one(abmll: Call) -> None:
    Path("mine.yaml").write_text(f"include: {RECIPES / 'cls-45.yaml'}\nseeds: [7]\n")
    found = settings_of(abmll, "mine.yaml")
    assert (found["seeds"], found["suite"], found["max_steps"]) == ([7], "cls-45", 6800)
    Path("para").write_text("suite: nli\n")
    assert settings_of(abmll, "para")["suite"] == "nli"
    assert (
        "paar: cannot be read (No such file or directory). Did you mean 'para'?" in abmll("compare --config paar").err
    )
    Path("circle.yaml").write_text("include: circle.yaml\n")
    assert "circle.yaml:1: includes itself" in abmll("compare --config circle.yaml").err


def test_an_unknown_architecture_is_refused(abmll: Call) -> None:
    assert "'me/unknown' is no known shape and no file" in abmll("compare --config para --smoke --model me/unknown").err
    assert (
        "'me/unknown' is no known shape and no file" in abmll("compare --config para --dry-run --model me/unknown").err
    )


def test_the_costs_in_the_docs_are_what_their_command_says(abmll: Call) -> None:
    [(command, table)] = re.findall(
        r"```bash\nabmll (compare [^`]*--dry-run)\n```\n\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert abmll(shlex.join(shlex.split(command))).out == table


def test_the_page_names_every_recipe() -> None:
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) >= set(recipes())
