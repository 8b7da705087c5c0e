"""``abmll demo`` on a tiny model and toy tasks: its comparison, its size, going on, its errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.cli import demo as verb
from abmll.experiments import sizing
from abmll.experiments.cell_runner import CellRunner
from abmll.experiments.sizing import Pace

Call = Callable[..., Any]
SHIPPED = yaml.safe_load(verb.SETTINGS.read_text(encoding="utf-8"))


@pytest.fixture
def demo(work: Any, monkeypatch: pytest.MonkeyPatch, abmll: Call) -> Call:
    """The command with toy tasks in the place of BIG-bench, on a machine that is slow."""
    small = {"suite": "suite.yaml", "target_modules": ["q_proj"], "layers_to_transform": "1"}
    Path("demo.yaml").write_text(yaml.safe_dump(SHIPPED | small | {"max_steps": 8, "save_steps": 2}))
    monkeypatch.setattr(verb, "SETTINGS", Path("demo.yaml"))
    monkeypatch.setattr("abmll.tasks.bigbench.fetch_bigbench", lambda say, quiet: None)
    monkeypatch.setattr(sizing, "measure_pace", lambda cells, results, say: Pace(60.0, 0.0, 0.0, 0.0, 0.0))
    return lambda *flags: abmll("demo", "--model", work.model, "--dtype fp32", *flags)


def test_the_demo_is_a_comparison_that_fits_the_machine(demo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = demo()
    assert code == 0
    assert "about 12 min 0 s on this machine: 6 episodes, 15 questions a task" in err  # 6 are the least
    assert "ABMLL mixture" in out
    found = json.loads(Path("runs/demo/comparison.json").read_text())
    assert list(found["methods"]) == SHIPPED["methods"]
    assert found["seeds"] == [0]
    assert (found["settings"]["test_examples"], found["settings"]["num_samples"]) == (15, 4)
    assert found["methods"]["abmll-mixture"]["run"] == found["methods"]["abmll"]["run"]
    assert Path("runs/demo/report.html").is_file()
    monkeypatch.setattr(CellRunner, "learned", lambda *_: pytest.fail("computed a finished cell again"))
    monkeypatch.setattr(sizing, "measure_pace", lambda *_: pytest.fail("measured a second time"))
    assert demo("--quiet") == (0, "", "")


def test_flags_overrule_what_fits(demo: Call) -> None:
    code, out, _ = demo("--max-steps 2 --test-examples 3 --seed 5 --json")
    assert code == 0
    found = json.loads(out)
    assert found["seeds"] == [5]
    settings = found["methods"]["abmll"]["settings"]
    assert (settings["max_steps"], settings["test_examples"], settings["num_samples"]) == (2, 3, 4)
    assert found["methods"]["abmll"]["mean"]["num_examples"] == 3


def test_an_interrupted_demo_goes_on_with_the_same_size(demo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CellRunner, "compute", interrupted)
        code, out, err = demo()
    assert (code, out) == (130, "")
    assert err.endswith("abmll: interrupted: runs/demo: run the same command to go on; what is finished is kept\n")
    monkeypatch.setattr(sizing, "measure_pace", lambda *_: Pace(0.0, 0.0, 0.0, 0.0, 0.0))  # it is fast now
    assert "as before: 6 episodes" in demo().err


def test_the_shipped_file_is_a_comparison(abmll: Call) -> None:
    code, out, _ = abmll(f"compare --config {verb.SETTINGS} --print-config")
    assert code == 0
    assert yaml.safe_load(out).items() >= SHIPPED.items()


def test_demo_refuses_what_cannot_be(demo: Call) -> None:
    assert "max_steps is 0" in demo("--max-steps 0").err
    Path("file").write_text("")
    assert "file is a file, not a folder" in demo("--output-dir file/demo").err
