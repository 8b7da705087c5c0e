"""Cells on memory: training beside the peers, many tasks, and many adapted posteriors held at once."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from abmll.common.settings import flatten
from abmll.tasks.order import task_of_episode
from benchmarks.bench import Bench
from benchmarks.contenders import NUMBERS, Ours, Setting, batches_of
from benchmarks.data import numbered, write_task
from benchmarks.memory import measure
from benchmarks.pairs import Spread
from benchmarks.peak_cases import CASES
from benchmarks.rows import Row, compared

REPETITIONS = 1  # each is a fresh process that loads the model
TASKS, QUICK_TASKS, ROWS, EPISODES = (10, 100, 1000), (3, 4, 5), 25, 3
HELD, QUICK_HELD = 60, 4  # adapted posteriors


def training(bench: Bench, setting: Setting) -> list[Row]:
    """Peak memory above the bare model, over an inner step on the longest of the first batches and the outer step."""
    num_tasks = len(bench.workload.train)
    with _examples(bench, setting) as file:
        shared = _settings(bench, setting) | {"examples": file, "num_tasks": num_tasks}
        cases = {
            "weight": ("ours", {"space": "weight"}),
            "output": ("ours", {"space": "output"}),
            "PEFT LoRA + Trainer": ("plain_lora", {}),
            "published algorithm": ("published", {}),
        }
        rounds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in _repetitions(bench):
            bare = measure("bare", shared)["peak"]
            for name, (case, own) in cases.items():
                rounds[name].append(_measured(bench, case, shared | own)["peak"] - bare)
    label = setting.label(bench)
    rows = []
    for space in ("weight", "output"):
        for peer, target in (("PEFT LoRA + Trainer", None), ("published algorithm", 0.35)):
            name = f"peak memory, {space} space / {peer} ({label})"
            rows.append(_ratio(name, rounds[space], rounds[peer], target))
    return rows


def tasks(bench: Bench, setting: Setting) -> list[Row]:
    """Peak memory of ``abmll train`` with 10, 100 and 1000 tasks of 25 rows; all of them read the same rows."""
    shared = _settings(bench, setting) | {"episodes": EPISODES, "prompt": flatten(bench.workload.prompt)}
    counts = QUICK_TASKS if bench.quick else TASKS
    rounds: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        folders = {count: task_folder(bench, Path(folder) / str(count), count) for count in counts}
        for _ in _repetitions(bench):
            for count in counts:
                rounds[count].append(_measured(bench, "tasks", shared | {"folder": str(folders[count])})["peak"])
    fewest = counts[0]
    return [
        _ratio(
            f"peak memory with {count} tasks / {fewest} tasks ({setting.label(bench)})",
            rounds[count],
            rounds[fewest],
            1.01 if count == counts[-1] else None,
        )
        for count in counts[1:]
    ]


def posteriors(bench: Bench, setting: Setting) -> list[Row]:
    """What an adapted posterior that is held adds to the process / the size of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.jsonl"
        write_task(path, islice(numbered(bench.workload.train), 10))
        own = {
            "task": str(path),
            "count": QUICK_HELD if bench.quick else HELD,
            "prompt": flatten(bench.workload.prompt),
        }
        measured = [_measured(bench, "posteriors", _settings(bench, setting) | own) for _ in _repetitions(bench)]
    name = f"a held posterior in memory / its file ({setting.label(bench)})"
    return [_ratio(name, [one["each"] for one in measured], [one["file"] for one in measured], 1.1)]


def _measured(bench: Bench, case: str, settings: Mapping[str, Any]) -> dict[str, int]:
    """What a fresh process says of a case. A trial run asks this one, since starting a process takes longest: that one
    can be started, ``bare`` shows."""
    return CASES[case](settings) if bench.quick else measure(case, settings)


def _ratio(name: str, numerators: Sequence[float], denominators: Sequence[float], target: float | None) -> Row:
    spread = Spread.of([one / other for one, other in zip(numerators, denominators, strict=True)])
    return compared(
        name, spread, Spread.of(numerators).median / 1e6, Spread.of(denominators).median / 1e6, "MB", target
    )


def _repetitions(bench: Bench) -> range:
    return range(1 if bench.quick else REPETITIONS)


def _settings(bench: Bench, setting: Setting) -> dict[str, Any]:
    adapter = {"modules": setting.modules, "r": setting.r, "alpha": setting.alpha}
    return {"model": bench.model, "device": bench.device, "dtype": setting.dtype or bench.dtype} | adapter


@contextmanager
def _examples(bench: Bench, setting: Setting) -> Iterator[str]:
    """A file with the tokens of the longest batch among the workload's first."""
    ours = Ours(bench, setting)
    batches = [batches_of(ours, number)[0] for number in range(NUMBERS)]
    batches = [max(batches, key=lambda batch: sum(map(len, batch)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples.json"
        path.write_text(json.dumps([[(e.prompt, e.options, e.answer) for e in batch] for batch in batches]))
        yield str(path)


def task_folder(bench: Bench, folder: Path, count: int) -> Path:
    """``count`` task files cut from real tasks; those that come first have the same rows whatever the count."""
    folder.mkdir()
    source = numbered(bench.workload.train)
    taken_up = [task_of_episode(0, episode, count) for episode in range(EPISODES)]
    others = sorted(set(range(count)) - set(taken_up))
    for position in [*taken_up, *others]:
        write_task(folder / f"task-{position:04}.jsonl", islice(source, ROWS))
    return folder
