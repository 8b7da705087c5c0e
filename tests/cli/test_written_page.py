"""The page on written answers does what it says: its commands and its Python, on a tiny model."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll import AbmllModel
from abmll.common.config import PromptConfig
from tests.cli.conftest import Outcome, Workspace, write_rows

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "written-answers.md"
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def files(work: Workspace) -> Workspace:
    """The files that the page names: tasks, a new one with the page's own rows, questions and a suite."""
    for verb in ("meet", "call", "write"):
        rows = [{"input": f"{verb} me on {day}, {number}", "output": day} for number, day in enumerate(DAYS * 2)]
        write_rows(work.root / f"my_tasks/{verb}.jsonl", rows)
    [example] = blocks("json")
    rows = [json.loads(line) for line in example.splitlines()]
    write_rows(work.root / "new_task.jsonl", [*rows, {"input": "Sunday, not Friday", "output": "Sunday"}])
    write_rows(work.root / "later.jsonl", rows)
    write_rows(work.root / "questions.jsonl", [{"input": "On Friday?"}, {"input": "On Monday."}])
    suite = "name: mine\ntrain: [meet]\nevaluation: [later]\nadapt_examples: 1\n"
    (work.root / "my_suite.yaml").write_text(suite, encoding="utf-8")
    (work.root / "meet.jsonl").write_bytes((work.root / "my_tasks/meet.jsonl").read_bytes())
    return work


def test_the_commands(files: Workspace, abmll: Callable[..., Outcome]) -> None:
    [block] = blocks("bash")
    sizes = files.train.replace("train", "", 1).replace("--tasks tasks", "--max-steps 2")
    for line in block.strip().splitlines():
        command = line.removeprefix("abmll ")
        done = abmll(command, sizes if command.startswith("train") else "")
        assert done.code == 0, (line, done.err)
    with open("answers.csv", encoding="utf-8", newline="") as file:
        assert [row["agreement"] for row in csv.DictReader(file)] == ["", ""]
    doubt = [json.loads(line) for line in Path("doubt.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(row["samples"]) for row in doubt] == [8, 8]
    scores = json.loads(Path("scores/metrics.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    metrics = scores["mean"].keys() - {"num_tasks"}
    assert {name for name in metrics if f"`{name}`" not in page} == set()
    assert not Path("scores/report.html").exists()


def test_the_python(files: Workspace, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = blocks("python")
    model = AbmllModel.from_base(str(tiny_llama), prompt=PromptConfig(), r=2, target_modules=["q_proj", "v_proj"])
    names: dict[str, Any] = {"model": model, "settings": {"max_steps": 2, "inner_steps": 2}}
    exec(compile(block, str(PAGE), "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert isinstance(names["best"], str)
    assert 1 / 8 <= names["answer"].agreement <= 1
    assert names["posterior"].is_written
