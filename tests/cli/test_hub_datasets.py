"""Datasets of the hub in the commands; the page about them is run, with a local repository for the dataset."""

import csv
import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "hub-datasets.md"
ON_PAGE, MAPPED = "hf:nyu-mll/glue[sst2]", "sentence=text,category=label"


pytestmark = pytest.mark.usefixtures("few_chains")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_commands_of_the_page(work: Any, abmll: Callable[..., Any], hub_folder: Path) -> None:
    [block] = blocks("bash")
    said = ""
    for line in block.replace("\\\n", " ").replace(ON_PAGE, f"hf:{hub_folder}[plain]").splitlines():
        words = shlex.split(line.replace("sentence=text", MAPPED if "predict" not in line else "sentence=text"))[1:]
        if words[0] in ("adapt", "classify"):
            words += ["--model", str(work.model)]
        if words[0] == "train":
            words += [word for word in work.train.split() if word not in ("train", "--tasks", "tasks")]
            words += ["--max-steps", "1"]
        code, _, err = abmll(*words)
        assert code == 0, err
        said += err
    assert "used: train, validation; left out: test, unsupervised" in said
    rows = list(csv.DictReader(io.StringIO(Path("answers.csv").read_text(encoding="utf-8"))))
    assert list(rows[0])[:3] == ["idx", "sentence", "category"]
    assert [row["category"] for row in rows] == ["refund", "bug", "account", ""]
    assert [name for name in rows[0] if name.startswith("prob_")] == ["prob_refund", "prob_bug", "prob_account"]
    assert len(Path("more.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_the_python_of_the_page(hub_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = blocks("python")
    block = block.replace(ON_PAGE, f"hf:{hub_folder}[plain]").replace('"text"}', '"text", "category": "label"}')
    exec(compile(block, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.endswith("desk-plain 12 3 ('refund', 'bug', 'account')\n")


def test_adapt_takes_the_train_split(work: Any, abmll: Callable[..., Any], hub_folder: Path) -> None:
    dataset = f"hf:{hub_folder}[plain]"
    command = f"adapt {dataset} --model {work.model} --column-mapping {MAPPED} --max-examples 6 --output-dir out --json"
    code, out, err = abmll(command)
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["task"], summary["examples"]) == ("desk-plain", 6)
    assert f"{dataset}: used: train; left out: validation, test, unsupervised" in err
    assert f"{dataset}: train: texts in column 'sentence', labels in 'category': refund, bug, account" in err


def test_adapt_takes_own_options_of_a_dataset(work: Any, abmll: Callable[..., Any], hub_folder: Path) -> None:
    mapping = "question=input,choices=options"
    code, out, err = abmll(
        f"adapt hf:{hub_folder}[exam] --model {work.model} --column-mapping {mapping} --output-dir out --json"
    )
    assert code == 0, err
    assert (json.loads(out)["task"], json.loads(out)["examples"]) == ("desk-exam", 2)


def test_suggest_chooses_from_another_split(work: Any, abmll: Callable[..., Any], hub_folder: Path) -> None:
    dataset = f"hf:{hub_folder}[plain]"
    code, out, err = abmll(
        f"suggest {dataset} --pool {dataset}:unsupervised --model {work.model} --column-mapping {MAPPED} --json"
    )
    assert code == 0, err
    assert {row["row"] for row in json.loads(out)} == {f"{dataset}: unsupervised row {n}" for n in (1, 2)}


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        ("adapt hf:{}[plan] --output-dir out", ["no config 'plan'. Did you mean 'plain'?"]),
        ("adapt hf:{}[plain]:tran --output-dir out", ["no split 'tran'. Did you mean 'train'?"]),
        ("adapt hf:{}[plain] --column-mapping sentense=text --output-dir out", ["no column 'sentense' (--column-map"]),
        ("adapt hf:{}[plain] --column-mapping sentence=txt --output-dir out", ["Did you mean 'text'?"]),
        ("classify hf:{0}[plain] hf:{0}[plain] -o out.csv", ["has the splits train, validation", "name one"]),
        ("train --tasks hf:{}[plain] --output-dir out", ["no column 'text' or 'input'; say which it is: --column-m"]),
        ("train --tasks hf:{}] --output-dir out", ["is no dataset's name; write hf:NAME[CONFIG]@REVISION:SPLIT"]),
        ("evaluate run --suite suite.yaml --column-mapping a=b --output-dir out", ["'a=b': use one of text, label"]),
        ("predict new --input hf:{}[plain] --output out.csv", ["has the splits train, validation", "name one"]),
    ],
)
def test_refusals(refused: Callable[..., str], hub_folder: Path, command: str, fragments: list[str]) -> None:
    refused(command.format(hub_folder), *fragments)


def test_files_are_mapped_too(work: Any, abmll: Callable[..., Any]) -> None:
    rows = ["no,said,kind", *(f"{n},a {'crash' if n % 2 else 'refund'} again {n},{'ab'[n % 2]}" for n in range(8))]
    Path("mine.csv").write_text("\n".join(rows), encoding="utf-8")
    mapping = "--column-mapping said=text,kind=label"
    short = work.train.replace("--tasks tasks", "--tasks mine.csv") + " --max-steps 1 --output-dir trained"
    assert abmll(f"{short} {mapping} --json").code == 0
    code, out, err = abmll(f"adapt mine.csv --model {work.model} {mapping} --output-dir out --json")
    assert (code, json.loads(out)["examples"]) == (0, 8), err
    code, _, err = abmll("predict out --input mine.csv --column-mapping said=text --output answers.csv")
    assert code == 0, err
    assert Path("answers.csv").read_text(encoding="utf-8").startswith("no,said,kind,predicted_label,")


def test_standard_input_can_be_a_task_file(
    work: Any, abmll: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BufferedReader(io.BytesIO(Path("toy3.jsonl").read_bytes()))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    code, out, err = abmll(f"adapt - --model {work.model} --output-dir out --json")
    assert code == 0, err
    assert (json.loads(out)["task"], json.loads(out)["examples"]) == ("task", 40)
