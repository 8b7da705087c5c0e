"""Examples on disk are those that were read: the same in every use, in memory that their number hardly changes."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from abmll.common.errors import DataError
from abmll.tasks import Example, Task, WrittenExample, check_leaks, load_suite, load_tasks, row_spool
from abmll.tasks import read as read_module
from abmll.tasks import shelf as shelf_module
from abmll.tasks.row_spool import RowSpool
from abmll.tasks.rows import Row
from abmll.tasks.shelf import Shelf
from abmll.tasks.spool import Spool
from abmll.tasks.stored import BLOCK, MAX_LISTS, store
from abmll.tasks.types import ExampleStore, are_written, content_hash
from abmll.training.training_tasks import fingerprint, usable

LABELS = ("yes", "no", "vielleicht: ä \u2028 \n")


def question(number: int, **values: Any) -> Example:
    given: dict[str, Any] = {"input": f"Is {number}\n odd? \u2028 ß", "options": LABELS, "answer": number % 3, **values}
    return Example(f"n/{number}", **given)


def many(count: int = 2 * BLOCK + 3) -> Task:
    """A task whose lists of options are more than a store holds in memory."""
    own = [("a", f"b{number}") for number in range(MAX_LISTS + 20)]
    examples = [question(number, options=own[number], answer=1) for number in range(len(own))]
    return Task("many", (*examples, *(question(number) for number in range(len(own), count))), "family", "many.jsonl")


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_a_stored_task_is_the_task(count: int) -> None:
    task = Task("t", tuple(question(number) for number in range(count)))
    stored = store(task, Spool())
    assert tuple(stored.examples) == task.examples
    assert tuple(stored.train) == task.train
    assert tuple(stored.test) == task.test
    assert [stored.examples[index] for index in range(-count, count)] == [*task.examples, *task.examples]
    assert stored.examples[1::2] == task.examples[1::2]
    assert (len(stored.train), len(stored.test)) == (len(task.train), len(task.test))


def test_long_lists_of_options_stand_with_their_examples() -> None:
    task = many()
    stored = store(task, Spool())
    assert tuple(stored.examples) == task.examples
    assert (stored.name, stored.family, stored.source) == (task.name, task.family, task.source)
    assert fingerprint([stored]) == fingerprint([task])


def test_sides_of_the_author_and_copies_of_a_question_stay_where_they_were() -> None:
    marked = Task("m", tuple(question(n, split="train" if n % 5 else "test") for n in range(300)))
    copies = Task("c", tuple(question(n, input=f"IS {n // 3}?") for n in range(300)))
    for task in (marked, copies):
        stored = store(task, Spool())
        assert (tuple(stored.train), tuple(stored.test)) == (task.train, task.test)
    with pytest.raises(IndexError):
        _ = store(marked, Spool()).examples[300]


def test_written_answers_stay_written_and_missing_ones_missing() -> None:
    written = Task("w", tuple(WrittenExample.of(f"{n}", f"Say {n}", None if n == 7 else f"{n}") for n in range(20)))
    stored = store(written, Spool())
    assert stored.is_written
    assert are_written(stored.examples)
    assert tuple(stored.examples) == written.examples
    assert stored.examples[7].answer is None
    with pytest.raises(DataError, match="'7' has no answer to learn from"):
        usable([stored], 1)


def test_a_leak_is_found_wherever_the_tasks_lie() -> None:
    train = [Task(f"t{k}", tuple(question(1000 * k + n) for n in range(200))) for k in range(3)]
    asked = [Task("e", (*train[1].examples[3:5], *train[2].examples[:1], question(9999))), Task("f", train[0].examples)]
    expected = [
        "evaluation task 'e' shares 2 examples (such as 'n/1003') with training task 't1'",
        "evaluation task 'e' shares 1 examples (such as 'n/2000') with training task 't2'",
        "evaluation task 'f' shares 200 examples (such as 'n/0') with training task 't0'",
    ]
    spool = Spool()
    stored = [[store(task, spool) for task in side] for side in (train, asked)]
    for sides in ((train, asked), (stored[0], asked), (train, stored[1]), tuple(stored)):
        assert check_leaks(*sides) == expected
    digests = stored[0][0].examples
    assert isinstance(digests, ExampleStore)
    assert digests.digests() == b"".join(bytes.fromhex(content_hash(one))[:16] for one in train[0].examples)


def test_the_first_examples_of_a_reading_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "IN_MEMORY", 300)
    shelf = Shelf()
    kept = [shelf.put(many()) for _ in range(2)]
    assert [isinstance(task.examples, ExampleStore) for task in kept] == [False, True]
    assert tuple(kept[1].examples) == kept[0].examples


def test_a_folder_and_a_suite_are_the_same_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        rows = [{"input": f"{name} {n}", "options": ["x", "y"], "answer": n % 2, "family": name} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "suite.yaml").write_text("name: three\ndescription: of three\ntrain: [a, b]\nevaluation: [c]\n")

    def read() -> tuple[list[Task], Any]:
        return load_tasks(tmp_path), load_suite(tmp_path / "suite.yaml", tmp_path)

    in_memory = read()
    monkeypatch.setattr(shelf_module, "IN_MEMORY", 50)
    on_disk = read()
    assert [isinstance(task.examples, ExampleStore) for task in on_disk[0]] == [False, True, True]
    assert fingerprint(on_disk[0]) == fingerprint(in_memory[0])
    assert fingerprint([*on_disk[1].train, *on_disk[1].evaluation]) == fingerprint(in_memory[0])
    on_disk[1].refuse_leaks()


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()

    class Full:
        def seek(self, place: int) -> None: ...
        def write(self, block: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(DataError, match=r"no room .*No space left on device.*TMPDIR"):
        store(many(), spool)


def test_memory_does_not_grow_with_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a sentence of some thirty words, as most of them are, " * 3
    for task in range(12):
        rows = [{"input": f"{task} {n} {text}", "options": LABELS, "answer": n % 3} for n in range(200)]
        (tmp_path / ("small" if task < 2 else ".")).mkdir(exist_ok=True)
        (tmp_path / ("small" if task < 2 else ".") / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def growth() -> float:
        """Bytes for each further example: the highest of reading, hashing and the leak check."""
        few, all_of_them = (peak_of(lambda folder=folder: use(folder)) for folder in (tmp_path / "small", tmp_path))
        return (all_of_them - few) / 2_000

    in_memory = growth()
    monkeypatch.setattr(shelf_module, "IN_MEMORY", 0)
    on_disk = growth()
    assert in_memory > 400, in_memory
    assert on_disk < in_memory / 5, (on_disk, in_memory)


def use(folder: Path) -> None:
    tasks = usable(load_tasks(folder), 1)
    fingerprint(tasks)
    assert check_leaks(tasks[1:], tasks[:1]) == []


def peak_of(do: Callable[[], object]) -> int:
    """Bytes that ``do`` holds at most."""
    gc.collect()
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_large_file_of_several_tasks_gives_what_it_gives_in_memory(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"option_1": "yes", "option_2": "no", "answer": "no", "split": "train"}
    rows = [{"question": f"{n}", **asked, "task": f"t{n % 3}"} for n in range(140)]
    path = tmp_path / f"many{suffix}"
    write_table(path, rows)
    how: Any = {"column_mapping": {"question": "input"}, "quiet": True}
    expected = load_tasks(path, **how)
    said: list[str] = []
    monkeypatch.setattr(read_module, "IN_MEMORY", 100)
    assert load_tasks(path, announce=said.append, **how) == expected
    assert [task.name for task in expected] == ["t0", "t1", "t2"]
    assert said == [f"{path}: more than 100 rows; they are sorted by task in a temporary file"]
    with pytest.raises(DataError, match=r"no column 'answers' \(--column-mapping\)"):
        load_tasks(path, column_mapping={"answers": "answer"}, quiet=True)


def test_a_large_file_of_one_task_and_one_of_which_rows_lack_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_module, "IN_MEMORY", 10)
    rows = [{"input": f"{n}", "options": ["a", "b"], "answer": 0} for n in range(40)]
    path = tmp_path / "one.jsonl"
    write_table(path, rows)
    [task] = load_tasks(path)
    assert (task.name, [one.input for one in task.examples]) == ("one", [f"{n}" for n in range(40)])
    write_table(path, [row | ({} if n == 30 else {"task": f"t{n % 2}"}) for n, row in enumerate(rows)])
    with pytest.raises(DataError, match=r"one\.jsonl:31: no key 'task'"):
        load_tasks(path)


def test_rows_that_json_cannot_hold_come_back_too() -> None:
    spool = RowSpool()
    dated = [Row(f"f:{n}", {"label": date(2026, 1, 1 + n)}) for n in range(20)]
    plain = [Row(f"f:{n}", {"input": "half a pair: \ud800", "options": ["a", 1.5, None]}) for n in range(40)]
    for row in [*dated, *plain]:
        spool.add("d" if row in dated else "p", row)
    assert (list(spool.rows("d")), list(spool.rows("p")), list(spool.rows("no"))) == (dated, plain, [])


def test_rows_of_very_many_small_tasks_do_not_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_spool, "WAITING", 10)
    rows: dict[str, list[Row]] = {f"task{number}": [] for number in range(7)}
    spool = RowSpool()
    for number in range(60):
        name, row = f"task{number * number % 7}", Row(f"row {number}", {"input": number})
        rows[name].append(row)
        spool.add(name, row)
        assert sum(map(len, vars(spool)["_waiting"].values())) < 10
    assert {name: list(spool.rows(name)) for name in rows} == rows
    assert spool.length == 60


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(",".join(line) for line in lines))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
