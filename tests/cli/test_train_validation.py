"""``abmll train`` with validation tasks: which they are, what is said at the end, and what is refused."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll import AbmllModel

from .conftest import Workspace, toy_rows, write_rows

Call = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "trackers.md"
SHORT = "--eval-examples 4 --eval-test-examples 5 --eval-adapt-steps 1"


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def learned(run: str) -> list[str]:
    newest = max(Path(run).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((newest / "state.json").read_text())["tasks"]


def test_validation_tasks_of_a_file(work: Workspace, abmll: Call) -> None:
    command = f"{work.train} --eval-tasks toy3.jsonl --max-steps 4 --eval-steps 2 {SHORT} --output-dir v"
    code, out, _ = abmll(command, "--json")
    assert code == 0
    rows = lines("v/validation.jsonl")
    assert [(row["episode"], row["num_tasks"], row["num_examples"]) for row in rows] == [(2, 1, 5), (4, 1, 5)]
    assert json.loads(out)["evaluation"] == rows[-1]
    assert "On validation tasks" in Path("v/report.html").read_text()
    assert learned("v") == ["toy0", "toy1", "toy2"]


def test_a_suite_has_validation_tasks_of_its_own(work: Workspace, abmll: Call) -> None:
    suite = Path("suite.yaml")
    suite.write_text(suite.read_text() + "validation: [toy1]\n")
    more = f"--tasks suite.yaml --max-steps 2 {SHORT}"
    for name, named in {"default": "--eval-steps 2", "named": "--eval-tasks suite.yaml"}.items():
        assert abmll(work.train, more, named, "--output-dir", name).code == 0
        assert learned(name) == ["toy0", "toy2"]  # what is evaluated on is not learned from
        assert len(lines(f"{name}/validation.jsonl")) == 1
    assert abmll(work.train, more, "--output-dir plain").code == 0
    assert learned("plain") == ["toy0", "toy1", "toy2"]
    assert not Path("plain/validation.jsonl").exists()


def test_a_run_that_stops_early_says_so_and_how_to_go_on(work: Workspace, abmll: Call) -> None:
    command = f"{work.train} --eval-tasks toy3.jsonl --max-steps 6 --eval-steps 1 --save-total-limit 1 {SHORT}"
    command += " --early-stopping-threshold 9 --load-best-model-at-end --output-dir v"  # nothing is that much better
    out = abmll(command, "--early-stopping-patience 2").out
    assert re.search(r"^episodes +3, of 3 tasks$", out, flags=re.MULTILINE)
    assert re.search(
        r"^validation +NLL .*, accuracy .* on 5 questions of 1 validation task; theta of", out, re.MULTILINE
    )
    assert re.search(r"^stopped early +no better evaluation; --resume with a larger", out, flags=re.MULTILINE)
    again = json.loads(abmll(command, "--early-stopping-patience 2 --resume --json").out)
    assert (again["episodes"], again["stopped_early"]) == (3, True)
    further = json.loads(abmll(command, "--early-stopping-patience 9 --resume --json").out)
    assert (further["episodes"], further["stopped_early"]) == (6, False)
    assert abmll("adapt toy3.jsonl --theta v --output-dir p --steps 1").code == 0


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ("--eval-steps 2", ["eval_steps: no validation tasks to evaluate on; name them with --eval-tasks"]),
        ("--eval-tasks tasks/toy0.jsonl", ["task 'toy0' is a training and an evaluation task; leave it out of one"]),
        ("--eval-tasks suite.yaml", ["suite 'mine' has no validation tasks"]),
        ("--eval-tasks nowhere", ["nowhere: no such file, folder or suite"]),
        ("--eval-tasks questions.jsonl", ["questions.jsonl:1: answer is null"]),
    ],
)
def test_what_cannot_be_evaluated_on(refused: Callable[..., str], work: Workspace, flags: str, fragments: Any) -> None:
    refused(f"{work.train} --max-steps 2 --output-dir out {flags}", *fragments)


def test_a_suite_s_folder_may_be_named_where_the_training_tasks_are_a_file(work: Workspace, abmll: Call) -> None:
    Path("tasks/toy0.jsonl").rename("apart.jsonl")
    Path("pool").mkdir()
    Path("tasks/toy1.jsonl").rename("pool/toy1.jsonl")
    Path("toy3.jsonl").rename("pool/toy3.jsonl")
    Path("s.yaml").write_text("name: s\ntrain: [toy1]\nvalidation: [toy1]\nevaluation: [toy3]\n")
    command = f"{work.train} --tasks apart.jsonl --eval-tasks s.yaml --data-dir pool --max-steps 2 --eval-steps 2"
    assert abmll(command, SHORT, "--output-dir out --quiet") == (0, "", "")


def test_a_missing_tracker_is_named_before_the_model_is_loaded(
    refused: Callable[..., str], work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(
        f"{work.train} --model no-such-model --report-to wandb --output-dir out", "report_to: wandb is not installed"
    )


def test_the_page_s_commands_run(work: Workspace, abmll: Call) -> None:
    """Those of the section on validation tasks, on a tiny model and few episodes."""
    section = PAGE.read_text(encoding="utf-8").split("## On validation tasks", 1)[1].split("\n## ", 1)[0]
    [block] = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    Path("tasks").rename("my_tasks")
    write_rows(Path("held_out/toy8.jsonl"), toy_rows(8))
    for command in filter(None, block.replace("\\\n", " ").splitlines()):
        words = command.removeprefix("abmll ").replace("train ", work.train.replace("--tasks tasks", "") + " ")
        assert abmll(words, f"--max-steps 4 {SHORT} --eval-steps 2 --save-steps 2").code == 0
    assert AbmllModel.from_pretrained("runs/mine").calibration_prior is not None
    for name in ("validation.jsonl", "report.html"):
        assert Path("runs/mine", name).is_file()
