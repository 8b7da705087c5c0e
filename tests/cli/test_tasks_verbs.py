"""``abmll tasks``: what each verb prints, and what makes it fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from abmll.cli.main import entry


def rows(topic: str, count: int = 10) -> list[dict[str, Any]]:
    return [
        {"input": f"Is {topic} number {n} larger than {n + 3}?", "options": ["yes", "no", "maybe"], "answer": n % 2}
        for n in range(count)
    ]


def write_task(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that nothing depends on what this machine has fetched."""
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ABMLL_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks."""
    write_task(tmp_path / "tasks" / "apples.jsonl", rows("apple"))
    write_task(tmp_path / "tasks" / "pears.jsonl", rows("pear", 20))
    return tmp_path / "tasks"


def result(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> Any:
    """What a verb prints with --json."""
    assert entry(["tasks", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The last line on stderr of a verb that fails."""
    assert entry(["tasks", *map(str, argv)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_ls_has_the_flags_that_its_errors_advise(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text("name: s\ntrain: [apples, plums]\nevaluation: [pears]\n")
    assert "Add its file, or say --allow-missing" in failure(capsys, "ls", suite, "--data-dir", folder)
    listed = result(capsys, "ls", suite, "--data-dir", folder, "--allow-missing")
    assert [row["name"] for row in listed] == ["apples", "pears"]
    shown = result(capsys, "show", suite, "--data-dir", folder, "--allow-missing", "--task", "pears")
    assert shown["name"] == "pears"
    assert "is no suite whose tasks are looked up" in failure(capsys, "ls", folder, "--data-dir", folder)
    leaks = result(capsys, "check-leaks", suite, "--data-dir", folder, "--allow-missing")
    assert (leaks["train"], leaks["evaluation"], leaks["leaks"]) == (1, 1, [])
    table = tmp_path / "written.csv"
    table.write_text("question,output\n" + "".join(f"{n},answer {n}\n" for n in range(201)))
    assert "say --generate" in failure(capsys, "ls", table, "--column-mapping", "question=input")
    [row] = result(capsys, "ls", table, "--column-mapping", "question=input", "--generate")
    assert (row["train"] + row["test"], row["options"]) == (201, [0])


def test_ls_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = result(capsys, "ls", folder)
    assert [(row["name"], row["train"] + row["test"], row["options"]) for row in listed] == [
        ("apples", 10, [3]),
        ("pears", 20, [3]),
    ]
    assert [row["constant"] for row in listed] == [0.5, 0.5]
    assert entry(["tasks", "ls", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "train", "test", "options", "constant"]
    assert [line.split()[0] for line in lines[2:]] == ["apples", "pears"]


def test_ls_of_what_is_at_hand(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {row["name"]: row for row in result(capsys, "ls")}
    assert listed["bigbench-demo"]["kind"] == "suite"
    assert listed["bigbench-demo"]["description"]
    assert listed["bigbench"]["description"] == "not fetched yet"
    assert entry(["tasks", "ls"]) == 0
    assert "bigbench (collection): not fetched yet\n" in capsys.readouterr().out
    write_task(cache / "tasks" / "bigbench" / "fruit.jsonl", rows("fruit"))
    listed = {row["name"]: row for row in result(capsys, "ls") if row["kind"] == "collection"}
    assert list(listed) == ["bigbench", "chembench", "crossfit", "legalbench", "unifiedqa", "winogrande"]
    assert listed["bigbench"]["description"].startswith("1 task in ")
    assert [row["name"] for row in result(capsys, "ls", "bigbench")] == ["fruit"]
    assert result(capsys, "show", "fruit")["name"] == "fruit"
    write_task(cache / "tasks" / "crossfit" / "ag_news.jsonl", rows("news"))
    assert [row["name"] for row in result(capsys, "ls", "crossfit")] == ["ag_news"]
    assert result(capsys, "show", "ag_news")["name"] == "ag_news"


def test_collections_and_suites_ask_to_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run 'abmll tasks fetch bigbench'" in failure(capsys, "ls", "bigbench")
    assert "abmll tasks fetch bigbench" in failure(capsys, "ls", "bigbench-demo")
    assert "run 'abmll tasks fetch unifiedqa'" in failure(capsys, "ls", "unifiedqa")
    assert failure(capsys, "ls", "cls-45").endswith(", or run abmll tasks fetch crossfit")


def test_unknown_suite_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'bigbench-demo'?" in failure(capsys, "ls", "bigbench-dmo")


def test_show_prints_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["tasks", "show", str(folder), "--task", "apples", "--limit", "1", "--list-options"]) == 0
    shown = capsys.readouterr().out
    assert "apples: Is apple number 0 larger than 3?\nChoices:\nA) yes\n" in shown
    assert "  * ' yes'\n    ' no'\n" in shown
    assert shown.count("---") == 1


def test_show_takes_prompt_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = result(capsys, "show", folder / "apples.jsonl", "--answer", "letter", "--no-instruction", "--limit", "3")
    assert len(shown["examples"]) == 3
    assert shown["examples"][1]["prompt"].startswith("apples: ")
    assert shown["examples"][1]["continuations"] == [" A", " B", " C"]
    assert shown["examples"][1]["answer"] == 1


def test_show_asks_which_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has 2 tasks; choose one with --task" in failure(capsys, "show", folder)
    assert "Did you mean 'apples'?" in failure(capsys, "show", folder, "--task", "aples")
    assert "limit must not be negative" in failure(capsys, "show", folder, "--limit", "-1")


def test_validate_looks_at_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_task(folder / "bad.jsonl", [*rows("plum", 2), {"input": "?", "options": ["a", "b"], "answer": "c"}])
    good = folder / "apples.jsonl"
    assert entry(["tasks", "validate", str(bad), str(good), str(folder / "absent.jsonl")]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{good}: ok, 1 task, 10 examples\n"
    assert captured.err.splitlines()[0].startswith(f"abmll: error: {bad}:3")
    assert len(captured.err.splitlines()) == 2


def test_validate_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert result(capsys, "validate", folder) == [{"file": str(folder), "tasks": 2, "examples": 30, "error": None}]


def test_validate_questions_without_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_task(tmp_path / "questions.jsonl", [{"input": "Why?", "options": ["a", "b"]}])
    assert f"{path}:1" in failure(capsys, "validate", path)
    assert result(capsys, "validate", path, "--no-answers")[0]["examples"] == 1


def test_validate_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "validate").endswith("missing FILES; see 'abmll tasks validate --help'")


def test_fetch_names_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "fetch", "bigbensh")
    assert "is 'bigbensh'; use 'bigbench', 'chembench', 'crossfit'," in line
    assert line.endswith("Did you mean 'bigbench'?")
    assert str(tmp_path / "no.tar.gz") in failure(capsys, "fetch", "bigbench", "--archive", tmp_path / "no.tar.gz")


def test_fetch_shows_licences_and_ends_in_one_line_without_a_network(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert entry(["tasks", "fetch", "chembench"]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    topic = "hf:jablonkagroup/ChemBench[organic_chemistry]"
    assert f"chembench-organic_chemistry: {topic} at newest, not pinned, licence: MIT" in lines
    assert [line for line in lines if line.startswith("abmll: error: ")] == lines[-1:]
    assert "HF_HUB_OFFLINE forbids to ask" in lines[-1]
    assert f"0 of 9 tasks are in {cache / 'tasks' / 'chembench'}" in lines[-1]
    assert "Traceback" not in captured.err


def test_fetch_from_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "copies" / "allenai" / "winogrande" / "winogrande_xl"
    folder.mkdir(parents=True)
    for split, size in (("train", 20), ("validation", 6)):
        lines = [
            {"sentence": f"{split} {n}: it was _ .", "option1": "A", "option2": "B", "answer": str(1 + n % 2)}
            for n in range(size)
        ]
        datasets.Dataset.from_list(lines).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    head = "configs:\n- config_name: winogrande_xl\n  data_files:\n"
    files = "".join(f"  - {{split: {name}, path: winogrande_xl/{name}-*}}\n" for name in ("train", "validation"))
    (folder.parent / "README.md").write_text(f"---\n{head}{files}---\n", encoding="utf-8")
    fetched = result(capsys, "fetch", "winogrande", "--archive", tmp_path / "copies", "--quiet")
    assert (fetched["collection"], fetched["tasks"]) == ("winogrande", 1)
    [row] = result(capsys, "ls", Path(fetched["folder"]))
    assert (row["name"], row["train"], row["test"], row["options"]) == ("wino_grande", 20, 6, [2])
    assert result(capsys, "show", "wino_grande")["examples"][1]["answer"] == 1


def test_no_leaks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check-leaks", folder / "apples.jsonl", folder / "pears.jsonl"]
    assert result(capsys, *argv) == {"train": 1, "evaluation": 1, "leaks": []}
    assert entry(["tasks", *map(str, argv)]) == 0
    assert capsys.readouterr().out == "no leaks: 1 training task and 1 evaluation task\n"


def test_leaks_are_listed_and_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = write_task(folder.parent / "other" / "copy.jsonl", [*rows("quince", 5), *rows("apple", 2)])
    assert entry(["tasks", "check-leaks", str(folder), str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "'copy' shares 2 examples" in captured.out
    assert "'apples'" in captured.out
    assert captured.err.startswith("abmll: error: 1 leak between 2 training tasks and 1 evaluation task; leave ")
    assert entry(["tasks", "check-leaks", str(folder), str(copy), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["leaks"]) == 1


@pytest.mark.usefixtures("folder")
def test_leaks_of_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("name: mine\ntrain: [apples]\nevaluation: [pears]\n")
    assert result(capsys, "check-leaks", suite)["leaks"] == []
    suite.write_text("name: mine\ntrain: [apples]\nevaluation: [apples]\n")
    assert entry(["tasks", "check-leaks", str(suite)]) == 2
    assert capsys.readouterr().out == "task 'apples' is a training and an evaluation task\n"


def test_a_terminal_is_shown_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "\x1b[2J\u202e\x9b31m"
    new = {"options": ["yes", f"no{odd}", "maybe"], "task": f"t{odd}"}
    content = [{"id": f"{n}{odd}", "input": f"{row['input']}\n{odd}"} for n, row in enumerate(rows("x"))]
    path = write_task(
        tmp_path / f"a{odd}.jsonl", [row | new | own for row, own in zip(rows("x"), content, strict=True)]
    )
    said = ""
    for verb in ("ls", "show", "validate"):
        for more in ([], ["--json"]):
            assert entry(["tasks", verb, str(path), *more]) == 0
            said += capsys.readouterr().out
    path.write_text("{")
    assert entry(["tasks", "validate", str(path)]) == 2
    said += capsys.readouterr().err
    assert {one for one in said if not one.isprintable()} == {"\n"}
    assert "\\x1b[2J" in said
    assert "larger than 3?\n\\x1b" in said  # lines of a text stay lines
