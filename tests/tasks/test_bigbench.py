"""The conversion of BIG-bench, on small archives made here."""

import gzip
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.common.documents import FORMATS
from abmll.common.download import IndexFile
from abmll.common.errors import DataError
from abmll.common.files import sha256_file
from abmll.tasks import bigbench
from abmll.tasks.bigbench import bigbench_dir, convert, fetch_bigbench
from abmll.tasks.leaks import check_leaks
from abmll.tasks.read import load_task, load_tasks

MakeArchive = Callable[[dict[str, Any]], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_archive(tmp_path: Path) -> MakeArchive:
    """Pack {path below benchmark_tasks: content} as a source archive."""

    def make(members: dict[str, Any]) -> Path:
        path = tmp_path / "bigbench-1.0.0.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                info = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return make


def item(number: int, **scores: float) -> dict[str, Any]:
    return {"input": f" Question {number}? ", "target_scores": scores or {"yes": 1, "no": 0}}


def source(*extra: dict[str, Any], rows: int = 60, **changes: Any) -> dict[str, Any]:
    examples = [item(n) for n in range(rows)] + list(extra)
    return {"canary": "canary string", "description": "words", "examples": examples, **changes}


def pinned(path: Path) -> IndexFile:
    return IndexFile("bigbench", path.name, sha256_file(path), path.stat().st_size)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_task_is_converted_whole(make_archive: MakeArchive, tmp_path: Path) -> None:
    archive = make_archive({"family/sub/task.json": source(task_prefix="Decide.\n", example_input_prefix="Q: ")})
    tasks = convert(archive, tmp_path / "out", quiet=True)
    path = tmp_path / "out" / "family.sub.jsonl"
    assert tasks == {
        "family.sub": {
            "sha256": sha256_file(path),
            "rows": 60,
            "options": [2],
            "family": "family",
            "canary": "canary string",
            "description": "words",
        }
    }
    row = lines_of(path)[7]
    assert (row["id"], row["task"], row["family"]) == ("family.sub/7", "family.sub", "family")
    assert row["input"] == "Decide.\nQuestion 7?"
    assert row["options"][row["answer"]] == "yes"
    task = load_task(path)
    assert (task.family, len(task.train), len(task.test)) == ("family", 48, 12)


def test_the_right_option_does_not_stay_first(make_archive: MakeArchive, tmp_path: Path) -> None:
    many = [item(n, a=1, b=0, c=0, d=0) for n in range(400)]
    convert(make_archive({"t/task.json": source(*many, rows=0)}), tmp_path / "out", quiet=True)
    counts = Counter(row["answer"] for row in lines_of(tmp_path / "out" / "t.jsonl"))
    # Each of the four places: binomial, mean 100, standard deviation 8.7.
    assert all(abs(counts[place] - 100) < 45 for place in range(4))


@pytest.mark.parametrize(
    "unsuitable",
    [
        {"input": "generate", "target": "text"},
        {"input": "scores of none", "target_scores": {}},
        item(1000, a=1, b=1),
        item(1001, a=0, b=0),
        item(1002, a=0.5, b=0.5),
        item(1003, a=1),
        item(1004, **{"a": 1, "a ": 0}),
        item(1005, **{"a": 1, " ": 0}),
        item(1006, **{f"o{n}": int(n == 3) for n in range(27)}),
        item(3),
    ],
)
def test_unsuitable_and_repeated_rows_are_left_out(
    unsuitable: dict[str, Any], make_archive: MakeArchive, tmp_path: Path
) -> None:
    tasks = convert(make_archive({"t/task.json": source(unsuitable, rows=50)}), tmp_path / "out", quiet=True)
    assert tasks["t"]["rows"] == 50
    assert convert(make_archive({"t/task.json": source(unsuitable, rows=49)}), tmp_path / "out", quiet=True) == {}


def test_at_most_2000_rows_are_kept_in_their_order(make_archive: MakeArchive, tmp_path: Path) -> None:
    archive = make_archive({"t/task.json": source(rows=2500)})
    assert convert(archive, tmp_path / "out", quiet=True)["t"]["rows"] == 2000
    numbers = [int(row["id"].split("/")[1]) for row in lines_of(tmp_path / "out" / "t.jsonl")]
    assert numbers == sorted(numbers)
    # A random choice of 2,000 of 2,500 leaves about 400 of the last 500.
    assert 350 < sum(number >= 2000 for number in numbers) < 450


def test_only_task_files_below_benchmark_tasks_are_read(make_archive: MakeArchive, tmp_path: Path) -> None:
    members = {"t/task.json": source(), "t/task.py": b"raise SystemExit", "u/other.json": source()}
    convert(make_archive(members), tmp_path / "out", quiet=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "t.jsonl"]


def test_fetch_converts_verifies_and_reuses(make_archive: MakeArchive) -> None:
    archive = make_archive({"t/task.json": source(), "u/task.json": source(task_prefix="Other")})
    told: list[str] = []
    folder = fetch_bigbench(told.append, quiet=True, sdist=archive, archive=pinned(archive))
    assert folder == bigbench_dir()
    assert told == [f"2 BIG-bench tasks are in {folder}"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], list(manifest["tasks"])) == (FORMATS["bigbench"], ["t", "u"])
    assert [task.name for task in load_tasks(folder)] == ["t", "u"]
    assert check_leaks(*[[task] for task in load_tasks(folder)]) == []

    written = (folder / "t.jsonl").stat().st_mtime_ns
    pin = pinned(archive)
    archive.unlink()
    fetch_bigbench(told.append, quiet=True, sdist=archive, archive=pin)
    assert (folder / "t.jsonl").stat().st_mtime_ns == written
    assert len(told) == 1

    with open(folder / "t.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="no such file"):
        fetch_bigbench(told.append, quiet=True, sdist=archive, archive=pin)


def test_conversions_agree_bit_for_bit(make_archive: MakeArchive, tmp_path: Path) -> None:
    archive = make_archive({"t/task.json": source(rows=2100)})
    first, second = (convert(archive, tmp_path / name, quiet=True) for name in ("first", "second"))
    assert first == second


def test_a_downloaded_archive_is_deleted_again(
    make_archive: MakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive({"t/task.json": source()})

    def fetch(wanted: IndexFile, destination: Path, announce: object, quiet: bool) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, destination)

    monkeypatch.setattr(bigbench, "fetch_from_index", fetch)
    folder = fetch_bigbench(lambda line: None, quiet=True, archive=pinned(archive))
    assert (folder / "t.jsonl").is_file()
    assert not (tmp_path / "cache" / archive.name).exists()
    assert archive.is_file()


def test_another_archive_is_refused(make_archive: MakeArchive) -> None:
    archive = make_archive({"t/task.json": source()})
    with pytest.raises(DataError, match=r"SHA-256 is .*, expected 1bb398a5"):
        fetch_bigbench(lambda line: None, quiet=True, sdist=archive)
    assert not bigbench_dir().exists()


@pytest.mark.parametrize("content", [b"no archive", gzip.compress(b"no tar" * 1000, mtime=0), b""])
def test_a_damaged_archive_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken.tar.gz: not a readable archive"):
        convert(path, tmp_path / "out", quiet=True)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.tar.gz"]


def test_a_truncated_archive_leaves_nothing(make_archive: MakeArchive, tmp_path: Path) -> None:
    path = make_archive({f"t{n}/task.json": source() for n in range(9)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable archive"):
        convert(path, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
