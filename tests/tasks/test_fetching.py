"""Collections made of copies of datasets on the disk: what is written, said, kept, and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.common.documents import FORMATS
from abmll.common.errors import DataError
from abmll.common.files import sha256_file
from abmll.tasks import fetching
from abmll.tasks.collection import Collection, collection_dir, parse_collection, read_collection
from abmll.tasks.fetching import fetch_collection
from abmll.tasks.hub_dataset import PARQUET
from abmll.tasks.leaks import check_leaks
from abmll.tasks.read import load_task, load_tasks
from abmll.tasks.sampling import examples_of
from abmll.tasks.suite import load_suite
from abmll.tasks.types import split_by_content
from tests.hub_stand_in import Hub

datasets = pytest.importorskip("datasets")

FILE = """
name: small
description: three tasks in the three forms in which datasets lie on the hub
tasks:
  pinned:
    dataset: me/readme
    config: sentences
    revision: 0123456789012345678901234567890123456789
    licence: CC BY 4.0
    train: train
    test: validation
    input: "text: {sentence}"
    options: [bad, good]
    answer: {index: label}
  newest:
    dataset: me/script
    config: plain
    licence: GPL-3.0
    sensitive: true
    pool: [train]
    input: "{q}"
    options: {items: choices.text}
    answer: {letter: key, labels: choices.label}
  table:
    dataset: me/tables
    config: law
    revision: a876543210987654321098765432109876543210
    files: data/{config}/{split}.tsv
    licence: not stated
    pool: [train, test]
    input: "{text} So?"
    options: ["No", None]
    answer: {text: answer}
elsewhere:
  lost: the hub has it as a script alone
"""
README = """---
configs:
- config_name: sentences
  data_files:
  - {split: train, path: sentences/train-*}
  - {split: validation, path: sentences/validation-*}
---
"""


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ABMLL_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def small() -> Collection:
    return parse_collection(FILE, "small")


@pytest.fixture(scope="session")
def copies_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_copies(tmp_path_factory.mktemp("copies"))


@pytest.fixture
def copies(copies_once: Path, tmp_path: Path) -> Path:
    """Copies of the three datasets, to be changed."""
    import shutil

    return Path(shutil.copytree(copies_once, tmp_path / "copies"))


def write_copies(root: Path) -> Path:
    def write(path: str, rows: list[dict[str, Any]], **classes: list[str]) -> None:
        data = datasets.Dataset.from_list(rows)
        for column, names in classes.items():
            data = data.cast_column(column, datasets.ClassLabel(names=names))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(root / path)

    def sentences(split: str, count: int) -> list[dict[str, Any]]:
        labels = [-1 if number % 5 == 4 else number % 2 for number in range(count)]
        return [{"idx": n, "sentence": f" {split} {n}\n", "label": label} for n, label in enumerate(labels)]

    doubled = [*sentences("train", 20), {"idx": 20, "sentence": "validation 0", "label": 1}]
    write("me/readme/sentences/train-00000-of-00001.parquet", doubled, label=["x", "y"])
    write("me/readme/sentences/validation-00000-of-00001.parquet", sentences("validation", 10), label=["x", "y"])
    (root / "me/readme/README.md").write_text(README, encoding="utf-8")
    questions = [
        {"q": f"Q{n}?", "choices": {"label": ["1", "2", "3"], "text": ["a", "b", f"c{n}"]}, "key": str(1 + n % 3)}
        for n in range(30)
    ]
    write("me/script/plain/train/0000.parquet", questions)
    law = root / "me/tables/data/law"
    law.mkdir(parents=True)
    header = "index\tanswer\ttext\n"
    (law / "train.tsv").write_text(header + '0\tNo\tthe first\n1\tNone\t"a ""quoted""\ttab"\n', encoding="utf-8")
    rows = "".join(f"{n}\t{('No', 'None')[n % 2]}\ttest {n}\n" for n in range(8))
    (law / "test.tsv").write_text(header + rows, encoding="utf-8")
    return root


def lines_of(task: str) -> list[dict[str, Any]]:
    text = (collection_dir("small") / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_have_the_form_of_the_suites(small: Collection, copies: Path) -> None:
    folder = fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    rows = lines_of("pinned")
    # Of 21 rows 4 have no label, and one is a test row; of 10 test rows 2 have none.
    assert [row["split"] for row in rows] == ["train"] * 16 + ["test"] * 8
    assert rows[0] == {
        "id": "pinned/train/0",
        "task": "pinned",
        "split": "train",
        "input": "text: train 0",
        "options": ["bad", "good"],
        "answer": 0,
    }
    assert [row["id"] for row in rows[16:]] == [f"pinned/validation/{n}" for n in (0, 1, 2, 3, 5, 6, 7, 8)]
    newest = lines_of("newest")
    assert {row["options"][row["answer"]] for row in newest} >= {"a", "b"}
    assert all(row["answer"] == int(row["id"].rsplit("/")[-1]) % 3 for row in newest)
    examples = load_task(folder / "newest.jsonl").examples
    assert [example.split for example in examples] == sorted(split_by_content(examples), key="train test".index)
    table = {row["id"]: row for row in lines_of("table")}
    assert len(table) == 10
    assert table["table/train/1"]["input"] == 'a "quoted"\ttab So?'
    assert table["table/train/1"]["options"][table["table/train/1"]["answer"]] == "None"
    tasks = load_tasks(folder)
    assert [task.name for task in tasks] == ["newest", "pinned", "table"]
    assert all(check_leaks([task], [other]) == [] for task in tasks for other in tasks if task is not other)


def test_licences_are_said_before_anything_is_fetched(small: Collection, copies: Path) -> None:
    said: list[str] = []
    folder = fetch_collection("small", said.append, quiet=True, source=copies, collection=small)
    assert said == [
        "pinned: hf:me/readme[sentences] at 01234567, licence: CC BY 4.0",
        "newest: hf:me/script[plain] at newest, not pinned, licence: GPL-3.0; insults or hurts",
        "table: hf:me/tables[law] at a8765432, licence: not stated",
        "lost: not fetched (the hub has it as a script alone); give its file with --data-dir",
        f"3 tasks of small are in {folder}",
    ]


def test_the_manifest_says_what_each_task_is(small: Collection, copies: Path) -> None:
    folder = fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == FORMATS["collection"]
    assert list(manifest["tasks"]) == ["newest", "pinned", "table"]
    recipe = manifest["tasks"]["pinned"].pop("recipe")
    assert len(recipe) == 64
    assert manifest["tasks"]["pinned"] == {
        "sha256": sha256_file(folder / "pinned.jsonl"),
        "train": 16,
        "test": 8,
        "options": [2],
        "dataset": "me/readme",
        "config": "sentences",
        "commit": None,  # a copy on the disk does not say it
        "is_pinned": False,
        "licence": "CC BY 4.0",
        "sensitive": False,
    }
    assert manifest["tasks"]["newest"]["sensitive"] is True


def test_a_second_call_writes_nothing_and_a_changed_file_is_made_again(small: Collection, copies: Path) -> None:
    said: list[str] = []
    folder = fetch_collection("small", said.append, quiet=True, source=copies, collection=small)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    said.clear()
    fetch_collection("small", said.append, quiet=True, source=copies / "nowhere", collection=small)
    assert said == []
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
    with open(folder / "table.jsonl", "a", encoding="utf-8") as file:
        file.write("\n")
    fetch_collection("small", said.append, quiet=True, source=copies, collection=small)
    assert [line.split(":")[0] for line in said[:-2]] == ["table"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {k: data for k, (_, data) in before.items()}


def test_a_recipe_that_changed_is_fetched_again(small: Collection, copies: Path) -> None:
    fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    other = parse_collection(FILE.replace("So?", "Then?"), "small")
    said: list[str] = []
    fetch_collection("small", said.append, quiet=True, source=copies, collection=other)
    assert [line.split(":")[0] for line in said[:-2]] == ["table"]
    assert all(row["input"].endswith("Then?") for row in lines_of("table"))


def test_the_same_bytes_in_every_cache(
    small: Collection, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "other"))
    second = fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    assert first != second
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


def test_what_was_interrupted_goes_on(small: Collection, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = fetching._fetch_task
    fetched: list[str] = []

    def killed(folder: Path, task: str, *others: Any) -> dict[str, Any]:
        if len(fetched) == 2:
            raise KeyboardInterrupt
        fetched.append(task)
        return true(folder, task, *others)

    monkeypatch.setattr(fetching, "_fetch_task", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    assert fetched == ["pinned", "newest"]
    fetched.clear()
    fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    assert fetched == ["table"]
    assert len(load_tasks(collection_dir("small"))) == 3


def test_a_dataset_that_is_missing_or_changed_does_not_stop_the_others(small: Collection, copies: Path) -> None:
    (copies / "me/script").rename(copies / "me/away")
    header = "index\tanswered\ttext\n"
    law = copies / "me/tables/data/law"
    (law / "test.tsv").write_text(header + "0\tNo\tx\n", encoding="utf-8")
    (law / "train.tsv").write_text(header + "0\tNo\ty\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)
    text = str(caught.value)
    assert text.startswith("newest (and 1 more: table) could not be fetched: ")
    assert "no such folder; put a copy of the dataset there" in text
    assert f"; the other tasks are in {collection_dir('small')}" in text
    assert len(lines_of("pinned")) == 24
    (copies / "me/away").rename(copies / "me/script")
    with pytest.raises(DataError, match=r"train has no column 'answer'; there are: index, answered, text"):
        fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=small)


def test_rows_of_which_none_is_a_question_are_refused(small: Collection, copies: Path) -> None:
    other = parse_collection(FILE.replace("answer: {text: answer}", "answer: {text: index}"), "small")
    with pytest.raises(DataError, match=r"of 10 rows 0 are questions, and a side has none; has the dataset changed\?"):
        fetch_collection("small", lambda line: None, quiet=True, source=copies, collection=other)


def test_of_many_rows_a_choice_is_kept_that_the_task_determines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.tasks.sampling.MAX_TRAIN", 40)
    monkeypatch.setattr("abmll.tasks.sampling.MAX_TEST", 10)
    monkeypatch.setattr("abmll.tasks.sampling._CHUNK", 16)
    recipe = parse_collection(FILE, "small").tasks["pinned"]
    rows = datasets.Dataset.from_list([{"sentence": f"s{n}", "label": n % 2} for n in range(400)])
    splits = {"train": rows.select(range(300)), "validation": rows.select(range(250, 400))}
    examples = examples_of("pinned", recipe, splits)
    train, test = examples[:40], examples[40:]
    assert ({one.split for one in train}, {one.split for one in test}, len(test)) == ({"train"}, {"test"}, 10)
    for side in (train, test):
        numbers = [int(example.id.rsplit("/", 1)[-1]) for example in side]
        assert numbers == sorted(numbers)
    assert {one.input for one in train}.isdisjoint({one.input for one in test})
    assert examples_of("pinned", recipe, splits) == examples
    assert examples_of("other", recipe, splits) != examples
    mean = sum(int(example.id.rsplit("/", 1)[-1]) for example in train) / 40
    assert abs(mean - 149.5) < 55  # of 300 rows: standard deviation of the mean 13.7


def test_a_suite_finds_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crossfit = read_collection("crossfit")
    wanted = {"glue-cola": crossfit.tasks["glue-cola"], "ag_news": crossfit.tasks["ag_news"]}
    suite = tmp_path / "mine.yaml"
    suite.write_text("name: mine\ntrain: [glue-cola]\nevaluation: [ag_news]\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"no training task 'glue-cola' .*run abmll tasks fetch crossfit, or say --allow"
    ):
        load_suite(suite)
    with pytest.raises(DataError, match=r"with --data-dir or ABMLL_DATA, or run abmll tasks fetch crossfit$"):
        load_suite("cls-45")
    with pytest.raises(DataError, match=r"or run abmll tasks fetch crossfit and abmll tasks fetch unifiedqa"):
        load_suite("mcqa")
    root = tmp_path / "copies"
    for task, column in (("glue-cola", "sentence"), ("ag_news", "text")):
        recipe = wanted[task]
        for split in recipe.splits:
            rows = [{column: f"{task} {split} {n}", "label": n % 2} for n in range(6)]
            path = root / recipe.dataset / recipe.config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(path)
        files = "".join(f"  - {{split: {split}, path: {recipe.config}/{split}-*}}\n" for split in recipe.splits)
        head = f"---\nconfigs:\n- config_name: {recipe.config}\n  data_files:\n{files}---\n"
        (root / recipe.dataset / "README.md").write_text(head, encoding="utf-8")
    part = crossfit.model_copy(update={"tasks": wanted})
    fetch_collection("crossfit", lambda line: None, quiet=True, source=root, collection=part)
    loaded = load_suite(suite)
    assert [len(task.examples) for task in (*loaded.train, *loaded.evaluation)] == [12, 12]
    own = tmp_path / "own"
    own.mkdir()
    (own / "ag_news.jsonl").write_text(
        "".join(json.dumps({"input": f"i{n}", "options": ["a", "b"], "answer": 0}) + "\n" for n in range(3))
    )
    assert len(load_suite(suite, own).evaluation[0].examples) == 3  # a folder that is named goes before the cache


def test_without_the_library(small: Collection, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'^small: needs the datasets library; run: pip install "abmll\[data\]"$'):
        fetch_collection("small", lambda line: None, quiet=True, collection=small)


@pytest.fixture
def fetch_from(small: Collection, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Fetch from a hub at an address; what was said."""
    from huggingface_hub import constants

    def fetch(url: str) -> list[str]:
        for module in (datasets.config, constants):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        said: list[str] = []
        fetch_collection("small", said.append, quiet=True, collection=small)
        return said

    return fetch


def test_a_hub_out_of_reach_ends_it_at_once(fetch_from: Callable[[str], list[str]]) -> None:
    import socket

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(
            DataError, match=r"^hf:me/readme.* cannot be reached .*; 0 of 3 tasks are in .*; a second call fetches the"
        ):
            fetch_from(f"http://127.0.0.1:{closed.getsockname()[1]}")


def test_offline_says_so(small: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for module in (datasets.config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    tasks = {"newest": small.tasks["newest"]}
    with pytest.raises(DataError, match="its files are not known, and HF_HUB_OFFLINE forbids to ask; unset it; 0 of 1"):
        fetch_collection("small", lambda line: None, quiet=True, collection=small.model_copy(update={"tasks": tasks}))
    with pytest.raises(DataError, match="was not loaded before, and HF_HUB_OFFLINE forbids the network"):
        fetch_collection("small", lambda line: None, quiet=True, collection=small)


def test_the_hub_is_asked_for_these_commits_and_files(
    fetch_from: Callable[[str], list[str]], copies: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pinned`` by its commit, ``table`` by its files at its commit, ``newest`` by what its Parquet branch is now."""
    commits: dict[str, str] = {}
    for task, branch in (("pinned", "main"), ("newest", PARQUET), ("table", "main")):
        recipe = parse_collection(FILE, "small").tasks[task]
        folder = copies / recipe.dataset
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        hub.create(recipe.dataset)
        commits[task] = recipe.revision or hub.commit(recipe.dataset, branch, files)
        hub.commits[commits[task]] = files
    said = fetch_from(hub.url)
    size = (copies / "me/script/plain/train/0000.parquet").stat().st_size
    [line] = [line for line in said if line.startswith("Fetching hf:me/script")]
    assert line.startswith(
        f"Fetching hf:me/script[plain]@{commits['newest']} ({size / 1e6:.1f} MB) from {hub.url} into "
    )
    assert len([line for line in said if line.startswith("Fetching hf:")]) == 3
    manifest = json.loads((collection_dir("small") / "manifest.json").read_text(encoding="utf-8"))
    assert {task: one["commit"] for task, one in manifest["tasks"].items()} == commits
    assert {task: one["is_pinned"] for task, one in manifest["tasks"].items()} == {
        "pinned": True,
        "newest": False,
        "table": True,
    }
    from_hub = {path.name: path.read_bytes() for path in collection_dir("small").glob("*.jsonl")}
    monkeypatch.setenv("ABMLL_CACHE", str(copies / "cache"))
    folder = fetch_collection("small", said.append, quiet=True, source=copies, collection=parse_collection(FILE, "x"))
    assert from_hub == {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
