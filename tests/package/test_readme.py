"""The README's commands and Python lines run as they stand there, with the embedded model, on a smaller budget."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from abmll.cli.main import entry

README = Path(__file__).parents[2] / "README.md"
# A repeated flag overrides the one before it: the commands are the README's, the budget is the test's.
BUDGET = {
    "train": ["--max-steps", "2", "--save-steps", "1", "--inner-steps", "2", "--per-device-train-batch-size", "2"],
    "adapt": ["--steps", "2"],
    "predict": ["--num-samples", "2"],
}
WORDS = {"animal": ("cat", "dog", "horse"), "fruit": ("apple", "plum", "pear"), "metal": ("iron", "zinc", "copper")}


# Sections whose commands are not run here, and why; test_pages.py checks that the words exist.
NOT_RUN = {
    "For others: a server and a page": "it serves until it is stopped; tests/serving asks such a server",
    "Install": "it installs; test_wheel.py installs the wheel",
    "Comparing methods": "it downloads 358 MB and compares all methods for hours; tests/cli/test_compare.py is small",
}


def blocks(language: str) -> list[str]:
    """The code blocks of one language in the README, in their order, but for the sections that are not run."""
    sections = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    run = [text for text in sections if text.partition("\n")[0] not in NOT_RUN]
    return [found for text in run for found in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)]


def write_task(path: Path, right: str, wrong: str) -> None:
    """A task file of twelve labelled examples: which kind of thing is it?"""
    write_table(path, ["input", "output"], right, wrong)


def write_table(path: Path, columns: list[str], right: str, wrong: str) -> None:
    """The same under other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{size} {word},{kind}" for kind in (right, wrong) for word in WORDS[kind] for size in ("small", "large")]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n", encoding="utf-8")


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the README's commands name."""
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "my_tasks" / "living.csv", "animal", "fruit")
    write_task(tmp_path / "my_tasks" / "mineral.csv", "metal", "fruit")
    write_task(tmp_path / "new_task.csv", "animal", "metal")
    write_table(tmp_path / "tickets.csv", ["text", "label"], "animal", "metal")
    for name in ("new.csv", "more.csv"):
        (tmp_path / name).write_text("text\na tall horse\nsome rust\n", encoding="utf-8")
    questions = [{"input": "a tall horse", "options": ["animal", "metal"]}, {"input": "rust", "options": ["a", "b"]}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    return tmp_path


@pytest.mark.real_model
def test_the_readme_commands_and_python_run_as_written(
    own_tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for commands in blocks("bash"):
        for line in commands.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            assert words.pop(0) == "abmll", line
            of_steps = words[0] != "adapt" or "full" in words
            code = entry([*words, *(BUDGET.get(words[0], []) if of_steps else [])])
            assert code == 0, f"{line}\n{capsys.readouterr().err}"
    for name, column in {
        "answers.csv": "predicted_label",
        "more_answers.csv": "predicted_label",
        "new_answers.csv": "label",
    }.items():
        with Path(name).open(encoding="utf-8", newline="") as file:
            answers = list(csv.DictReader(file))
        assert [row[column] in ("animal", "metal", "a", "b") for row in answers] == [True, True]
        assert all(float(row["mutual_information"]) >= 0 for row in answers)
    assert Path("adapters/new/adapter_model.safetensors").is_file()
    assert Path("runs/mine/report.html").is_file()

    variables: dict[str, object] = {}
    for python in blocks("python"):
        exec(compile(python, str(README), "exec"), variables)  # the project's own README
    assert Path("runs/first-python").is_dir()


def test_sections_that_are_not_run_are_there() -> None:
    titles = re.findall(r"^## (.*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {*NOT_RUN} <= {*titles}
