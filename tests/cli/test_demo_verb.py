"""``abmll demo``: its flags, its table, its errors; what it computes is tested in tests/test_demo.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


class FakeDemo:
    """Stands in for the comparison, which needs downloads and a quarter of an hour."""

    asked: Any = None
    error: BaseException | None = None

    def __init__(self, folder: Path, settings: Any, *rest: Any) -> None:
        type(self).asked = settings

    def run(self) -> dict[str, Any]:
        if self.error:
            raise self.error
        mean = {"accuracy": 0.5, "nll": 0.7, "num_tasks": 8, "num_examples": 400}
        return {"methods": {"abmll": {"label": "ABMLL", "mean": mean}}}


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abmll: Call) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("abmll.experiments.demonstration.Demo", FakeDemo)
    monkeypatch.setattr("abmll.experiments.html.write_report", lambda folder: Path(folder) / "report.html")
    return lambda *flags: abmll("demo", *flags)


def test_demo_prints_its_table(demo: Call) -> None:
    code, out, _ = demo("--max-steps", "7", "--seed", "3")
    assert code == 0
    assert "ABMLL" in out
    assert "mean over 8 unseen tasks, 400 questions, one seed (3)" in out
    assert (FakeDemo.asked.train.max_steps, FakeDemo.asked.train.seed) == (7, 3)
    assert demo("--quiet") == (0, "", "")
    assert json.loads(demo("--json").out)["methods"].keys() == {"abmll"}


def test_demo_refuses_what_cannot_be(demo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "max_steps is 0" in demo("--max-steps", "0").err
    Path("file").write_text("")
    assert "file is a file, not a folder" in demo("--output-dir", "file/demo").err
    monkeypatch.setattr(FakeDemo, "error", KeyboardInterrupt("of the training inside"))
    code, _, err = demo()
    assert (code, err) == (
        130,
        "abmll: interrupted: runs/demo: run the same command to go on; what is finished is kept\n",
    )
