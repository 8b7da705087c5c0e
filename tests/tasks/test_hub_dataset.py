"""Datasets of the hub, by folders of the same form: names, configs, splits, classes, and every refusal."""

import http.server
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from abmll.common.errors import ConfigError, DataError
from abmll.tasks.columns import find_columns, read_table
from abmll.tasks.hub_name import HubName, parse_hub, task_name
from abmll.tasks.labelled import labelled_rows
from abmll.tasks.read import load_task, load_tasks

LABELS = ("refund", "bug", "account")  # the order of the classes
NAMES = {"sentence": "text", "category": "label"}


@pytest.mark.parametrize(
    ("text", "parts", "name"),
    [
        ("hf:imdb", ("imdb", None, None, None), "imdb"),
        ("hf:nyu-mll/glue[sst2]", ("nyu-mll/glue", "sst2", None, None), "glue-sst2"),
        ("hf:SetFit/sst2:train", ("SetFit/sst2", None, None, "train"), "sst2"),
        ("hf:a/b[c d]@refs/pr/1:dev.all-1", ("a/b", "c d", "refs/pr/1", "dev.all-1"), "b-c d"),
        ("hf:a@v1.0", ("a", None, "v1.0", None), "a"),
        ("hf:./x y[default]:test", ("./x y", "default", None, "test"), "x y"),
        ("hf:/data/x", ("/data/x", None, None, None), "x"),
        ("hf:C:/data/x:train", ("C:/data/x", None, None, "train"), "x"),
    ],
)
def test_names(text: str, parts: tuple[str | None, ...], name: str) -> None:
    assert parse_hub(text) == parts
    assert str(parse_hub(text)) == text
    assert parse_hub(Path(text)).config == parts[1]
    assert task_name(text) == name


@pytest.mark.parametrize("text", ["hf:", "hf:a[b", "hf:a[]", "hf:a@", "hf:a[b]c", "hf:a[b]:"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write hf:NAME\[CONFIG\]@REVISION:SPLIT, of which NAME alone is needed"):
        parse_hub(text)


def test_files_have_names_too() -> None:
    assert [task_name(where) for where in ("a/tickets.csv", Path("t.jsonl.gz"), "-")] == ["tickets", "t", "task"]


def test_classes_are_labels_and_splits_are_sides(hub_folder: Path) -> None:
    said: list[str] = []
    (task,) = load_tasks(f"hf:{hub_folder}[plain]", column_mapping=NAMES, announce=said.append)
    assert task.name == "desk-plain"
    assert {example.options for example in task.examples} == {LABELS}
    assert [example.answer for example in task.train] == [n % 3 for n in range(12)]
    assert [example.input for example in task.test] == [f"a {LABELS[n]} in validation, row {n}" for n in range(3)]
    assert len({example.id for example in task.examples}) == 15
    assert said == [
        f"hf:{hub_folder}[plain]: used: train, validation; left out: test, unsupervised",
        f"hf:{hub_folder}[plain]: 1 row without a label left out",
    ]


def test_one_split_has_no_sides(hub_folder: Path) -> None:
    said: list[str] = []
    task = load_task(f"hf:{hub_folder}[plain]:train", column_mapping=NAMES, announce=said.append)
    assert {example.split for example in task.examples} == {None}
    assert len(task.examples) == 12
    assert said == []


def test_the_class_of_an_answer_beside_options_is_its_place(hub_folder: Path) -> None:
    mapping = {"question": "input", "choices": "options"}
    (task,) = load_tasks(f"hf:{hub_folder}[exam]", column_mapping=mapping)
    assert [(example.input, example.options, example.answer) for example in task.examples] == [
        ("1 + 1?", ("2", "3"), 0),
        ("1 + 2?", ("2", "3"), 1),
    ]


def test_a_split_is_a_table(hub_folder: Path) -> None:
    said: list[str] = []
    table = read_table(Path(f"hf:{hub_folder}[plain]"), NAMES, split="train", announce=said.append)
    assert table.columns == ("idx", "sentence", "category")
    assert table.rows[4].values == {"idx": 4, "sentence": "a bug in train, row 4", "category": "bug"}
    assert table.rows[4].where == f"hf:{hub_folder}[plain]: train row 5"
    assert find_columns(table) == ("sentence", "category")
    assert table.classes == {"category": LABELS}
    assert said == [f"hf:{hub_folder}[plain]: used: train; left out: validation, test, unsupervised"]
    validation = read_table(Path(f"hf:{hub_folder}[plain]:validation"))
    assert validation.values("category") == ["refund", "bug", "account", None]


def test_lists_of_classes_are_several_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["sad", "glad", "odd"]))}
    )
    columns = {"text": ["a", "b", "c", "d"], "label": [[0], [1, 2], [], [1]]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    table = read_table(Path(f"hf:{tmp_path / 'saved'}"))
    rows = labelled_rows(table, find_columns(table), table.classes["label"], is_multi_label=True)
    assert rows.labels == ("sad", "glad", "odd")
    assert rows.chosen == (("sad",), ("glad", "odd"), (), ("glad",))


def test_numbers_without_classes_are_labels_as_text(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"text": list("abcd"), "label": [1, 0, -1, 10], "id": [7, 8, 9, 7.5]}
    data = datasets.Dataset.from_dict({**columns, "id": [7, 8, 9, 10]})
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    (task,) = load_tasks(f"hf:{tmp_path / 'saved'}")
    assert task.examples[0].options == ("-1", "0", "1", "10")
    assert [example.answer for example in task.train] == [2, 1, 0, 3]
    assert [example.id for example in task.test] == ["test/7", "test/8", "test/9", "test/10"]


@pytest.mark.parametrize(
    ("name", "mapping", "fragment"),
    [
        ("", NAMES, ": has the configs plain, exam; name one, such as hf:{}[plain]"),
        ("[plan]", NAMES, "[plan]: no config 'plan'. Did you mean 'plain'? There are: plain, exam"),
        ("[plain]:tran", NAMES, ": no split 'tran'. Did you mean 'train'? There are: train, validation, test, unsu"),
        ("[plain]", {}, "no column 'text' or 'input'; say which it is: --column-mapping COLUMN=text. Its columns are"),
        ("[plain]", {"sentence": "text"}, "no column 'label'; say which it is: --column-mapping COLUMN=label. Its"),
        ("[plain]", {"sentense": "text"}, "no column 'sentense' (--column-mapping). Did you mean 'sentence'? Its col"),
        ("[plain]:unsupervised", NAMES, "no row has both a text and a label"),
    ],
)
def test_refusals(hub_folder: Path, name: str, mapping: dict[str, str], fragment: str) -> None:
    with pytest.raises(DataError) as caught:
        load_tasks(f"hf:{hub_folder}{name}", column_mapping=mapping)
    assert fragment.format(hub_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_several_splits_asks_for_one(hub_folder: Path) -> None:
    with pytest.raises(DataError, match=r"has the splits train, validation, .*; name one, of hf:.*\[plain\]:train, "):
        read_table(Path(f"hf:{hub_folder}[plain]"))


def test_a_script_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "made.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(DataError, match="is made by a script, and scripts are never run"):
        load_tasks(f"hf:{tmp_path / 'made'}")


def test_a_folder_that_is_not_there(hub_folder: Path) -> None:
    with pytest.raises(DataError, match=r"desc: no such folder. Did you mean 'desk'\?"):
        load_tasks(f"hf:{hub_folder.parent / 'desc'}")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'hf:imdb: needs the datasets library; run: pip install "abmll\[data\]"'):
        load_tasks("hf:imdb")


@pytest.fixture
def endpoint(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda url: monkeypatch.setattr(config, "HF_ENDPOINT", url)


def test_a_hub_that_cannot_be_reached(endpoint: Callable[[str], None]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        endpoint(f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(DataError, match=r"hf:imdb: http.* cannot be reached .*; .*HF_HUB_OFFLINE=1 uses what was"):
            load_tasks("hf:imdb")
    assert time.monotonic() - start < 15  # what the page promises; the library alone tries for longer


def test_a_hub_that_says_nothing(endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.tasks.hub_dataset.SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DataError, match=r"cannot be reached \(.*timed out.*\)"):
            load_tasks("hf:imdb")


@pytest.fixture
def answers() -> Iterator[Callable[[str], str]]:
    """A hub that answers everything with 404, and says why in a header."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(code: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_dataset_that_is_unknown(endpoint: Callable[[str], None], answers: Callable[[str], str]) -> None:
    endpoint(answers("RepoNotFound"))
    with pytest.raises(
        DataError, match=r"hf:imbd: no such dataset at http.*, and no such folder; if it is private, lo"
    ):
        load_tasks("hf:imbd")


def test_a_revision_that_is_unknown(endpoint: Callable[[str], None], answers: Callable[[str], str]) -> None:
    endpoint(answers("RevisionNotFound"))
    with pytest.raises(DataError, match="hf:imdb@v9: no revision 'v9'; name a branch, tag or commit"):
        load_tasks("hf:imdb@v9")


def test_offline_what_was_never_loaded_is_not_there(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config
    from huggingface_hub import constants

    for module in (config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf:imdb: was not loaded before, and HF_HUB_OFFLINE forbids the network"):
        load_tasks("hf:imdb")


def test_what_is_downloaded_is_said() -> None:
    pytest.importorskip("datasets")
    from abmll.tasks.hub_dataset import _announced

    assert _announced(HubName("glue", "sst2"), 7_440_000).startswith("Fetching hf:glue[sst2] (7.4 MB) from http")
    assert "(size not known)" in _announced(HubName("glue"), None)
