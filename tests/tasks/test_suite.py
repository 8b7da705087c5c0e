"""Suites: found, checked, loaded; and the one that is shipped."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.tasks.definition import read_suite, shipped_suites
from abmll.tasks.order import limit_train
from abmll.tasks.suite import load_suite

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
    assert (suite.name, suite.description) == ("mine", "two tasks")
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
        ({"validation": ["b"]}, "'validation' names 'b', which is not under 'train'"),
        ({"known_leaks": ["a"]}, "'known_leaks' names 'a', which is not under 'evaluation'"),
        ({"evaluation": ["b", "a"], "validation": ["a"]}, "'a' is a validation and an evaluation task"),
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
    with pytest.raises(DataError, match=r"no evaluation task 'animal'. Did you mean 'animals'\? Add"):
        load_suite(suite_file(evaluation=["animal"]))


@pytest.mark.parametrize(("text", "message"), [("train: [", ":2: not valid YAML"), ("- a", "expected keys such as")])
def test_what_is_no_suite_at_all(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        load_suite(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(DataError, match=r"s.yaml: not UTF-8 text \(byte 9\)"):
        load_suite(path)


def test_a_prefix_says_that_a_suite_is_meant() -> None:
    assert read_suite("suite:bigbench") == read_suite("bigbench")


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no suite 'bigbench-dem': .*Did you mean 'bigbench-demo'\?"):
        load_suite("bigbench-dem")


def test_bigbench_must_have_been_fetched() -> None:
    with pytest.raises(DataError, match="run: abmll tasks fetch bigbench"):
        load_suite("bigbench-demo")


SHIPPED = Path(__file__).parents[2] / "src" / "abmll" / "tasks" / "suites"


def lists_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_loads(name: str, write_rows: Write, question: Question) -> None:
    values = lists_of(name)
    names = values["train"] + values["evaluation"]
    folders = {write_rows([question(n) for n in range(3)], f"data/{task}.jsonl").parent for task in names}
    suite = load_suite(name, data_dir=folders.pop())
    assert [task.name for task in suite.train + suite.evaluation] == names
    assert (list(suite.validation), suite.missing) == (values["validation"], ())
    tuning = suite.for_tuning()
    assert len(tuning.train) + len(tuning.evaluation) == len(suite.train)
    assert {*suite.validation} == {task.name for task in tuning.evaluation}
    PromptConfig(**suite.prompt)
    both = {*values["train"]} & {*values["evaluation"]}
    assert both == ({"sick"} if name == "nli-leaky" else set())
    assert both <= {*suite.known_leaks}


@pytest.mark.parametrize("name", ["bigbench", "bigbench-demo"])
def test_bigbench_families_are_on_one_side(name: str) -> None:
    values = lists_of(name)
    train, evaluation, validation = (
        {task.split(".")[0] for task in values[side]} for side in ("train", "evaluation", "validation")
    )
    rest = {task.split(".")[0] for task in values["train"] if task not in values["validation"]}
    assert not train & evaluation
    assert not rest & validation


@pytest.mark.parametrize(
    ("name", "train", "evaluation"),
    [
        ("cls-45", 34, 15),
        ("cls-23", 28, 15),
        ("nli", 41, 8),  # 42 with the leaking task
        ("nli-leaky", 42, 8),
        ("para", 46, 4),
        ("mcqa", 18, 12),
        ("winogrande", 34, 1),
        ("legalbench", 34, 155),
        ("legalbench-heldout", 135, 20),
        ("chembench", 34, 9),
    ],
)
def test_the_paper_counts_as_many_tasks(name: str, train: int, evaluation: int) -> None:
    values = lists_of(name)
    assert (len(values["train"]), len(values["evaluation"])) == (train, evaluation)


def test_the_demo_is_as_large_as_promised() -> None:
    values = lists_of("bigbench-demo")
    assert len(values["train"]) >= 16
    assert len(values["evaluation"]) == 8


def test_what_is_missing_is_named(suite_file: Callable[..., Path]) -> None:
    path = suite_file(train=["a", "c"], evaluation=["b", "d"], validation=["a", "c"], known_leaks=["d"])
    with pytest.raises(DataError, match=r"no training task 'c' \(and 1 more\). Add its file, or say --allow-missing"):
        load_suite(path)
    said: list[str] = []
    suite = load_suite(path, allow_missing=True, announce=said.append)
    assert said == [f"{path}: not found, and left out: c, d"]
    assert [task.name for task in suite.train + suite.evaluation] == ["a", "b"]
    assert (suite.missing, suite.validation, suite.known_leaks) == (("c", "d"), ("a",), ())
    with pytest.raises(DataError, match="not one of its evaluation tasks was found"):
        load_suite(suite_file(evaluation=["d"]), allow_missing=True)


@pytest.mark.parametrize("collection", ["bigbench", "crossfit"])
def test_a_packed_file_and_the_cache(
    suite_file: Callable[..., Path], write_rows: Write, question: Question, collection: str
) -> None:
    path = suite_file(train=["a", "packed", "fetched"], evaluation=["b", "cached"])
    plain = write_rows([question(n) for n in range(4)], "suite/packed.jsonl")
    plain.with_name("packed.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    write_rows([question(n) for n in range(5)], "cache/tasks/cached.jsonl")
    write_rows([question(n) for n in range(6)], f"cache/tasks/{collection}/fetched.jsonl")
    suite = load_suite(path)
    assert [len(task.examples) for task in suite.train + suite.evaluation] == [10, 4, 6, 10, 5]
    write_rows([question(n) for n in range(6)], "suite/cached.jsonl")  # the suite's own folder goes before the cache
    assert len(load_suite(path).evaluation[1].examples) == 6


def test_a_task_of_the_hub(suite_file: Callable[..., Path], question: Question, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "far"
    datasets.Dataset.from_list([question(n) for n in range(7)]).save_to_disk(folder)
    suite = load_suite(suite_file(train=["a", "far"], hub={"far": str(folder)}))
    assert (suite.train[1].name, len(suite.train[1].examples)) == ("far", 7)
    with pytest.raises(ConfigError, match="'hub' must be task names"):
        load_suite(suite_file(hub=["a"]))


def test_tuning_needs_validation_tasks(suite_file: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="suite 'mine' has no validation tasks"):
        load_suite(suite_file()).for_tuning()


def test_known_leaks_are_let_through_and_others_are_not(suite_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="the evaluation would not be of unseen tasks"):
        load_suite(suite_file()).refuse_leaks()  # a and b hold the same examples
    load_suite(suite_file(known_leaks=["b"])).refuse_leaks()


@pytest.mark.parametrize("limit", [3, 5])
def test_a_limit_keeps_a_seeded_few_of_the_training_examples(limit: int, suite_file: Callable[..., Path]) -> None:
    task = load_suite(suite_file()).train[0]
    kept = limit_train(task, limit, seed=1)
    ids = [example.id for example in kept.train]
    assert len(ids) == limit
    assert {*ids} <= {example.id for example in task.train}
    assert [example.id for example in kept.test] == [example.id for example in task.test]
    assert ids == [example.id for example in limit_train(task, limit, seed=1).train]
    assert {*ids} <= {example.id for example in limit_train(task, limit + 1, seed=1).train}
    others = [{example.id for example in limit_train(task, limit, seed=seed).train} for seed in range(2, 8)]
    assert any(other != {*ids} for other in others)
    assert limit_train(task, None, 1) is task
    assert limit_train(task, 8, 1) is task
