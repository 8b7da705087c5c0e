"""Suites: found, checked, loaded; and the one that is shipped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.config import PromptConfig
from abmll.errors import ConfigError, DataError
from abmll.tasks.suite import load_suite, shipped_suites

Write = Callable[..., Path]
Question = Callable[..., dict[str, Any]]
TWO_TASKS = {"name": "mine", "train": ["a"], "evaluation": ["b"]}


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ABMLL_DATA", raising=False)
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def suite_file(write_rows: Write, question: Question, tmp_path: Path) -> Callable[..., Path]:
    """Write a suite, with changes, beside its tasks ``a`` and ``b``."""
    for name in ("suite/a.jsonl", "suite/tasks/b.jsonl"):
        write_rows([question(n) for n in range(10)], name)

    def write(**changes: Any) -> Path:
        values = {key: value for key, value in {**TWO_TASKS, **changes}.items() if value is not ...}
        path = tmp_path / "suite" / "mine.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_a_suite_beside_its_tasks(suite_file: Callable[..., Path]) -> None:
    suite = load_suite(
        suite_file(description="two  tasks\n", prompt={"answer": "letter"}, adapt_examples=5, test_examples=7)
    )
    assert (suite.name, suite.description) == ("mine", "two  tasks")
    assert [task.name for task in suite.train + suite.evaluation] == ["a", "b"]
    assert PromptConfig(**suite.prompt).answer == "letter"
    assert (suite.adapt_examples, suite.test_examples) == (5, 7)


def test_defaults(suite_file: Callable[..., Path]) -> None:
    suite = load_suite(suite_file())
    assert (suite.description, suite.prompt, suite.adapt_examples, suite.test_examples) == ("", {}, None, None)


def test_a_data_folder_goes_before_the_source(
    suite_file: Callable[..., Path], write_rows: Write, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_rows([question(n) for n in range(3)], "data/a.jsonl").parent
    write_rows([question(n) for n in range(3)], "data/tasks/b.jsonl")
    path = suite_file()
    monkeypatch.setenv("ABMLL_DATA", str(folder))
    assert [len(task.examples) for task in load_suite(path).train] == [3]
    monkeypatch.setenv("ABMLL_DATA", "/nowhere")
    assert [len(task.examples) for task in load_suite(path, data_dir=folder).train] == [3]
    with pytest.raises(DataError, match="/nowhere: no such folder"):
        load_suite(path)


def test_a_named_source_is_not_replaced_by_the_environment(
    suite_file: Callable[..., Path], write_rows: Write, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_rows([question(n) for n in range(3)], "data/a.jsonl").parent
    write_rows([question(n) for n in range(3)], "data/b.jsonl")
    path = suite_file(source="bigbench")
    monkeypatch.setenv("ABMLL_DATA", str(folder))
    monkeypatch.setenv("ABMLL_CACHE", str(folder / "empty"))
    with pytest.raises(DataError, match="abmll tasks fetch bigbench"):
        load_suite(path)
    assert [len(task.examples) for task in load_suite(path, data_dir=folder).train] == [3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": ["b"]}, "unknown key 'evaluate'. Did you mean 'evaluation'?"),
        ({"prompt": {"anwser": "text"}}, "unknown key of 'prompt' 'anwser'. Did you mean 'answer'?"),
        ({"prompt": "text"}, "'prompt' must be keys and values"),
        ({"name": ...}, "'name' is missing"),
        ({"train": []}, "'train' is missing"),
        ({"train": "a"}, "'train' must be a list"),
        ({"train": ["a", 1]}, "'train' must be a list"),
        ({"train": ["a", "a"]}, "'train' names a task twice"),
        ({"source": "web"}, "'source' is 'web'; use one of folder, bigbench"),
        ({"test_examples": 0}, "'test_examples' is 0"),
        ({"adapt_examples": True}, "'adapt_examples' is True"),
    ],
)
def test_a_malformed_suite_is_refused(changes: dict[str, Any], message: str, suite_file: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml: ") as caught:
        load_suite(suite_file(**changes))
    assert message in str(caught.value)


def test_an_unknown_task_names_the_nearest(
    suite_file: Callable[..., Path], write_rows: Write, question: Question
) -> None:
    write_rows([question()], "suite/animals.jsonl")
    with pytest.raises(DataError, match=r"no evaluation task 'animal'. Did you mean 'animals'\?"):
        load_suite(suite_file(evaluation=["animal"]))


@pytest.mark.parametrize(("text", "message"), [("train: [", ":2: malformed YAML"), ("- a", "expected keys such as")])
def test_what_is_no_suite_at_all(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        load_suite(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(DataError, match=r"s.yaml: cannot be read"):
        load_suite(path)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no suite 'bigbench-dem': .*Did you mean 'bigbench-demo'\?"):
        load_suite("bigbench-dem")


def test_bigbench_must_have_been_fetched() -> None:
    with pytest.raises(DataError, match="run: abmll tasks fetch bigbench"):
        load_suite("bigbench-demo")


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_loads_and_shares_no_family(name: str, write_rows: Write, question: Question) -> None:
    text = (Path(__file__).parents[2] / "src" / "abmll" / "suites" / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    names = values["train"] + values["evaluation"]
    folders = {write_rows([question(n) for n in range(3)], f"data/{task}.jsonl").parent for task in names}
    suite = load_suite(name, data_dir=folders.pop())
    assert [task.name for task in suite.train + suite.evaluation] == names
    families = [task.split(".")[0] for task in names]
    assert len(set(families)) == len(families)
    PromptConfig(**suite.prompt)


def test_the_demo_is_as_large_as_promised() -> None:
    path = Path(__file__).parents[2] / "src" / "abmll" / "suites" / "bigbench-demo.yaml"
    values = yaml.safe_load(path.read_text())
    assert len(values["train"]) >= 16
    assert len(values["evaluation"]) == 8
