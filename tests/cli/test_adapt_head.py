"""``abmll adapt`` without a run, and on a run's features: a head."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_task_is_learned_and_answered_without_a_run(work: Any, abmll: Callable[..., Any]) -> None:
    code, out, _ = abmll(f"adapt toy3.jsonl --model {work.model} --output-dir p")
    assert code == 0
    assert "learned by  a head, without gradient steps\nfeatures    the language model as it was downloaded\n" in out
    assert {path.name for path in Path("p").iterdir()} == {"manifest.json", "posterior.json", "head.safetensors"}
    assert abmll("predict p --input questions.jsonl --output answers.csv").code == 0
    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(float(row["entropy"]) >= float(row["mutual_information"]) >= 0 for row in rows)


def test_the_same_command_gives_the_same_answers(work: Any, abmll: Callable[..., Any]) -> None:
    for name in ("one", "two"):
        assert abmll(f"adapt toy3.jsonl --model {work.model} --output-dir {name}").code == 0
        assert abmll(f"predict {name} --input questions.jsonl --output {name}.jsonl").code == 0
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()


def test_with_a_run_the_head_reads_its_theta(work: Any, abmll: Callable[..., Any]) -> None:
    summary = json.loads(abmll("adapt toy3.jsonl --theta run --output-dir p --json").out)
    assert (summary["method"], summary["steps"]) == ("abmll-head", 0)
    assert {path.name for path in Path("p").iterdir()} == {
        "manifest.json",
        "posterior.json",
        "head.safetensors",
        "phi.safetensors",
    }
    assert abmll("predict p --input questions.jsonl --output answers.jsonl").code == 0


def test_adapt_full_takes_steps(work: Any, abmll: Callable[..., Any]) -> None:
    command = "adapt toy3.jsonl --theta run --adapt full --output-dir p --json"
    assert json.loads(abmll(command).out)["method"] == "abmll-mixture"


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        ("adapt tasks --output-dir p", "tasks: is a folder; give one file of it"),
        ("adapt run --output-dir p", "is a training run, not a task; say: abmll adapt TASK --theta run"),
        ("adapt toy3.jsonl --output-dir p --steps 3", "full takes gradient steps from the theta of a training run"),
        ("adapt toy3.jsonl --theta run --adapt head --steps 3 --output-dir p", "steps: a head takes no gradient steps"),
        (
            "adapt toy3.jsonl --theta run --adapt head --gradient-checkpointing --output-dir p",
            "gradient_checkpointing: a head takes no gradient steps",
        ),
        (
            "adapt toy3.jsonl --theta run --adapt head --compile --output-dir p",
            "compile: a head takes no gradient steps",
        ),
        (
            "adapt toy3.jsonl --theta run --compile --gradient-checkpointing --output-dir p",
            "compile: excludes gradient_checkpointing; leave one of them out",
        ),
        ("adapt toy3.jsonl --adapt both --output-dir p", "--adapt is 'both'"),
    ],
)
def test_what_cannot_be_is_one_line(refused: Callable[..., str], command: str, fragment: str) -> None:
    refused(command, fragment)


def test_a_head_is_not_exported_as_an_adapter(work: Any, abmll: Callable[..., Any]) -> None:
    assert abmll(f"adapt toy3.jsonl --model {work.model} --output-dir p").code == 0
    code, _, err = abmll("export p --format peft --output-dir out")
    assert code == 2
    assert "a head on the bare model's features; it has no adapter; answer with it in ABMLL (predict), or" in err


@pytest.mark.parametrize("format", ["peft", "merged", "lm-eval --data toy3.jsonl"])
def test_beside_the_adapter_that_it_reads_with_a_head_is_exported(
    format: str, work: Any, abmll: Callable[..., Any]
) -> None:
    assert abmll("adapt toy3.jsonl --theta run --output-dir p").code == 0
    code, out, _ = abmll(f"export p --format {format} --output-dir out")
    assert (code, f"not in the adapter, but in {Path('out/posterior')}, for 'abmll predict' alone" in out) == (0, True)
    assert {path.name for path in Path("out/posterior").iterdir()} == {
        *("manifest.json", "posterior.json", "head.safetensors", "phi.safetensors")
    }
    assert json.loads(Path("out/abmll.json").read_text(encoding="utf-8"))["head_left_out"] is True
    texts = [path.read_text(encoding="utf-8") for name in ("*.json", "*.md") for path in Path("out").rglob(name)]
    assert not any(str(work.model) in text for text in texts)
    [said] = re.findall(r"`abmll (predict FOLDER/posterior --model BASE [^`]*)`", "".join(texts))
    asked = said.replace("FOLDER", "out").replace("BASE", str(work.model)).replace("new.csv", "questions.jsonl")
    assert abmll(asked).code == 0
    assert abmll("predict p --input questions.jsonl --output own.csv").code == 0
    assert Path("answers.csv").read_bytes() == Path("own.csv").read_bytes()
