"""Names on a hub in the place of folders, and the page about them, against a hub on this computer."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from tests.hub_stand_in import Hub

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "hub.md"
Call = Callable[..., Any]


def write_table(path: str, rows: list[tuple[str, ...]]) -> None:
    Path(path).write_text("".join(",".join(row) + "\n" for row in rows))


def test_the_page_does_what_it_says(work: Any, abmll: Call, hub: Hub) -> None:
    shutil.copytree("new", "runs/tickets")
    shutil.copytree("run", "runs/mine")
    write_table("more.csv", [("text",), ("3 1 abcde",), ("3 2 hgfed",)])
    write_table("new.csv", [("text",), ("3 1 abcde",)])
    labelled = [(f"{n} {'ab' if n % 2 else 'cd'}", "yes" if n % 2 else "no") for n in range(12)]
    write_table("tickets.csv", [("text", "label"), *labelled])
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        code, _, err = abmll(line.removeprefix("abmll "))
        assert code == 0, err
    assert hub.private == {"ann/tickets": "private", "ann/theta": None}
    assert sorted(hub.branches["ann/theta"]) == ["main", "v1"]
    assert abmll("predict new --input more.csv --output here.csv").code == 0
    assert Path("here.csv").read_bytes() == Path("more_answers.csv").read_bytes()
    [python] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(python, str(PAGE), "exec"), {})
    assert hub.messages[-1] == "The same again"
    assert abmll("adapt toy3.jsonl --theta runs/copy --output-dir again --steps 2 --quiet").code == 0
    assert Path("again/phi.safetensors").read_bytes() == Path("new/phi.safetensors").read_bytes()


def test_a_name_is_taken_where_a_folder_is(work: Any, abmll: Call, hub: Hub) -> None:
    pushed = abmll("push run ann/theta --json --message First")
    assert pushed.code == 0
    assert f'"url": "{hub.url}/ann/theta"' in pushed.out
    code, _, err = abmll("export ann/theta --format peft --output-dir adapter")
    assert (code, Path("adapter/abmll.json").is_file()) == (0, True)
    assert err.startswith("Fetching ann/theta at ")
    evaluated = "--suite suite.yaml --data-dir tasks --adapt-examples 4 --test-examples 4 --adapt head"
    shutil.copy("toy3.jsonl", "tasks/toy3.jsonl")
    assert abmll(f"evaluate ann/theta {evaluated} --output-dir out").code == 0
    assert abmll(f"evaluate run {evaluated} --output-dir here").code == 0
    assert Path("out/predictions.jsonl").read_bytes() == Path("here/predictions.jsonl").read_bytes()
    Path("suite.yaml").write_text("name: mine\ntrain: [toy1, toy2]\nevaluation: [toy0]\n")
    code, _, err = abmll(f"evaluate ann/theta {evaluated} --output-dir leak")
    assert (code, "was trained on 'toy0'" in err) == (2, True)


def test_the_card_has_the_cross_validation_of_the_table(work: Any, abmll: Call, hub: Hub) -> None:
    labelled = [(f"{n} {'ab' if n % 2 else 'cd'}", "yes" if n % 2 else "no") for n in range(8)]
    write_table("tickets.csv", [("text", "label"), *labelled])
    write_table("new.csv", [("text",), ("3 ab",)])
    told = json.loads(abmll(f"classify tickets.csv new.csv --model {work.model} -o a.csv --save kept --json").out)
    assert abmll("push kept ann/kept").code == 0
    Path("README.md").write_bytes(hub.commits[hub.branches["ann/kept"]["main"]]["README.md"])
    data = ModelCard.load("README.md").data.to_dict()
    [index] = data["model-index"]
    [result] = index["results"]
    assert result["dataset"] == {"name": "tickets", "type": "abmll-task"}
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found == {key: value for key, value in told["cross_validation"].items() if value is not None}
    assert index["name"] == "kept"


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        ("predict ann/none --input questions.jsonl --output a.jsonl", "has no such name. Is it private?"),
        ("predict ann/theta@v9 --input questions.jsonl --output a.jsonl", "no revision 'v9'"),
        ("predict ann/foreign --input questions.jsonl --output a.jsonl", "so abmll did not write it"),
        ("adapt toy3.jsonl --theta ann/none --output-dir a", "has no such name. Is it private?"),
        ("push none ann/none", "none: no such folder."),
        ("push run none", "'none' is no name on a hub; write user/name"),
    ],
)
def test_what_is_refused(command: str, fragment: str, work: Any, abmll: Call, hub: Hub) -> None:
    assert abmll("push run ann/theta --quiet").code == 0
    hub.create("ann/foreign")
    code, out, err = abmll(command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err


def test_an_export_is_pushed_by_the_hubs_own_command(work: Any, abmll: Call, hub: Hub) -> None:
    assert abmll("export new --format peft --output-dir adapter").code == 0
    code, _, err = abmll("push adapter ann/adapter")
    said = "adapter: is an export, which has its card; push it with: hf upload ann/adapter adapter"
    assert (code, err) == (2, f"abmll: error: {said}\n")
    assert hub.requests == []


def test_out_of_reach(work: Any, abmll: Call, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for command, advice in {
        "predict ann/new --input questions.jsonl --output a.jsonl": "check the network, or give a folder",
        "push new ann/new": "check the network and HF_ENDPOINT, and push again",
    }.items():
        code, _, err = abmll(command)
        assert (code, err.count("\n")) == (2, 1)
        assert f"cannot be reached (ConnectError); {advice}" in err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = abmll("predict ann/new --input questions.jsonl --output a.jsonl")
    assert (code, "HF_HUB_OFFLINE forbids to ask" in err) == (2, True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(work.root / "token"))
    code, _, err = abmll("push new ann/new")
    assert (code, "no token to push with" in err) == (2, True)
