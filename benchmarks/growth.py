"""Cells on growth without a language model: files, rows, tasks of a run and of a server, the head's examples, options.

What is work of Python is counted instead of timed, as calls of functions: the same number every time. A sort, a
product of matrices or a query is one call, so where these are the work, they are timed.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

from sqlalchemy import insert

from abmll.serving.database import TASKS, connect
from abmll.serving.task_store import TaskStore
from abmll.tasks import Example, Task, check_leaks, load_tasks
from abmll.tasks.spool import Spool
from abmll.tasks.stored import store
from abmll.training.sampler import EpisodeSampler
from abmll.training.training_tasks import fingerprint, usable
from benchmarks.bench import Bench
from benchmarks.memory import measure
from benchmarks.pairs import Rounds, Spread, interleave
from benchmarks.predicting import head_of
from benchmarks.rows import Row, compared
from benchmarks.trends import counted, timed

FILES = (10, 100, 1_000, 10_000)
EXAMPLES = (1_000, 10_000, 100_000)
RUN_TASKS = (100, 1_000, 10_000)
SERVED = (10, 1_000, 100_000)
HEAD_EXAMPLES = (20, 60, 200, 600, 1_000)
HEAD_OPTIONS = (2, 20, 60, 200)
ROWS_OF_FILE = 10
PARQUET = (300, 10_000)  # tasks of 1,000 rows
LINEAR = 1.05  # a sort, as of a permutation, is n log n
CUBIC = 3.0
ROUNDS = 3  # of what takes seconds: over so many sizes its noise hardly turns the line


def files(bench: Bench) -> list[Row]:
    """Reading, hashing and checking task files of ten rows."""
    sizes = FILES[:2] if bench.quick else FILES
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            write_files(Path(folder) / str(size), size, ROWS_OF_FILE)
        costs = {size: operations(lambda size=size: used(load_tasks(Path(folder) / str(size)))) for size in sizes}
    return [counted("task files: reading, hashing, leak check", costs, LINEAR)]


def examples(bench: Bench) -> list[Row]:
    """The same for the examples of tasks, in memory and on disk."""
    sizes = EXAMPLES[:2] if bench.quick else EXAMPLES
    rows = []
    for where in ("in memory", "on disk"):
        costs: dict[int, int] = {}
        for size in sizes:
            spool, made = Spool(), [_task(number, size // 10) for number in range(10)]
            tasks = made if where == "in memory" else [store(task, spool) for task in made]
            costs[size] = operations(lambda tasks=tasks: used(tasks))
        rows.append(counted(f"examples {where}: hashing, leak check", costs, LINEAR))
    return rows


def parquet(bench: Bench) -> list[Row]:
    """What reading, hashing and checking a folder of Parquet files of 1,000 rows adds to a process.

    Both have more examples than stay in memory.
    """
    few, many = (2, 4) if bench.quick else PARQUET
    with tempfile.TemporaryDirectory() as folder:
        peaks = [
            measure("parquet", {"folder": folder, "tasks": tasks, "rows": 1_000})["peak"] / 1e6 for tasks in (few, many)
        ]
    ratio = peaks[1] / peaks[0]
    name = f"memory that reading takes at most, {many:,},000 rows in Parquet / {few:,},000"
    return [compared(name, Spread(ratio, ratio, ratio), peaks[1], peaks[0], "MB")]


def run_tasks(bench: Bench) -> list[Row]:
    """Choosing the examples of an epoch's episodes, one for every task, or as many from the union of all."""
    sizes = RUN_TASKS[:2] if bench.quick else RUN_TASKS
    return [
        timed(
            f"tasks of a run: drawing the examples of an epoch ({draws_from})",
            _few(bench, {size: lambda _, size=size, kind=draws_from: draw_epoch(size, kind) for size in sizes}),
            LINEAR,
        )
        for draws_from in ("task", "union")
    ]


def draw_epoch(tasks: int, draws_from: str) -> None:
    """The examples of as many episodes as there are tasks, which have 40 examples each."""
    sampler = EpisodeSampler(0, [40] * tasks, 4, 5, draws_from="task" if draws_from == "task" else "union")
    for episode in range(tasks):
        sampler.batches(episode)


def served(bench: Bench) -> list[Row]:
    """A server's database: opening it, a page of the list from its middle, one task, by the number of tasks."""
    sizes = SERVED[:2] if bench.quick else SERVED
    with tempfile.TemporaryDirectory() as folder:
        urls = {size: f"sqlite:///{folder}/{size}.sqlite" for size in sizes}
        stores = {size: _filled(url, size) for size, url in urls.items()}
        works: dict[str, Callable[[int, int], object]] = {
            "opening the store": lambda size, _: connect(urls[size]).dispose(),
            "a page of the list": lambda size, _: stores[size].tasks("", after=_name(size // 2)),
            "finding one": lambda size, number: stores[size].task("", _name(number % size)),
        }
        rows = []
        for what, work in works.items():
            rounds = bench.rounds({str(size): _repeated(work, size) for size in sizes})
            rows.append(timed(f"registered tasks: {what}", rounds, 0.2))
        for one in stores.values():
            one.engine.dispose()
    return rows


def head_examples(bench: Bench) -> list[Row]:
    """Fitting a head of three labels to 20 to 1,000 examples, 200 answers included."""
    sizes = (20, 40) if bench.quick else HEAD_EXAMPLES
    return [timed("head: examples (3 labels)", _few(bench, {n: head_of(n, 3, False) for n in sizes}), CUBIC)]


def head_options(bench: Bench) -> list[Row]:
    """Fitting a head to 100 examples of 2 to 200 labels, 200 answers included."""
    sizes = (2, 4) if bench.quick else HEAD_OPTIONS
    return [timed("head: labels (100 examples)", _few(bench, {c: head_of(100, c, False) for c in sizes}), LINEAR)]


def operations(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls, those written in C included."""
    calls = count()

    def called(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            next(calls)

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return next(calls)


def write_files(folder: Path, number: int, rows: int) -> None:
    """Task files with so many rows each."""
    folder.mkdir(parents=True)
    for task in range(number):
        lines = [
            json.dumps({"input": f"{task} {row}", "options": ["a", "b"], "answer": row % 2}) for row in range(rows)
        ]
        (folder / f"task_{task:05}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _task(number: int, size: int) -> Task:
    return Task(f"t{number}", tuple(Example(f"{n}", f"{number} {n}", ("a", "b"), n % 2) for n in range(size)))


def used(tasks: Sequence[Task]) -> None:
    """What a training run does with its tasks before the first step, a tenth of them being validation tasks."""
    held_out = max(1, len(tasks) // 10)
    fingerprint(usable(tasks, 1))
    assert check_leaks(tasks[held_out:], tasks[:held_out]) == []


def _filled(url: str, number: int) -> TaskStore:
    engine = connect(url)
    rows = [{"tenant": "", "name": _name(n), "how": "head", "settings": "{}", "created": 0.0} for n in range(number)]
    with engine.begin() as db:
        db.execute(insert(TASKS), rows)
    return TaskStore(engine, url)


def _name(number: int) -> str:
    return f"task{number:06}"


def _repeated(work: Callable[[int, int], object], size: int) -> Callable[[int], object]:
    """The work ten times over, on other tasks each time."""

    def all_of_it(number: int) -> None:
        for place in range(10):
            work(size, number * 10 + place)

    return all_of_it


def _few(bench: Bench, contenders: Mapping[int, Callable[[int], object]]) -> Rounds:
    named = {str(size): work for size, work in contenders.items()}
    return interleave(named, 1 if bench.quick else ROUNDS, warmup=0 if bench.quick else 1, smoke=True)
