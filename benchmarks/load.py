"""python -m benchmarks.load: a server at the machine's limit, for ten minutes; what it said is then checked offline.

Many clients ask many tasks at once, one teaches them meanwhile. At the end no answer may be missing, every answer of
the tasks that are checked must be what the library says of the same examples and text, and memory must not have grown.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from abmll.common.config import ModelConfig
from abmll.common.files import write_json
from abmll.common.progress import progress
from abmll.model.meta_learner import AbmllModel
from benchmarks import machine
from benchmarks.bench import Bench, announce
from benchmarks.serving import NAMES, SUPPORT, Numbers, resident, served
from benchmarks.starting import model_folder

CLIENTS, TASKS, CHECKED = 32, 24, 6
BETWEEN = 4.0  # seconds between two lessons
MEMORY = ("--memory-mb", "64")  # so that what learned tasks may take is full before memory is compared
SETTLED = 0.25  # share of the time after which memory should not grow any more
TOLERANCE = 1e-6

Pair = tuple[str, str]


@dataclass
class Said:
    """What was asked and answered."""

    asked: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    answers: list[tuple[int, int, str, dict[str, Any]]] = field(default_factory=list)  # task, version, text, answer
    other_bytes: int = 0  # answers to a repeated request that differ from the first
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds since the beginning, MB


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where an answer was lost or wrong, or memory grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default=ModelConfig.model)
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "load.json")
    given = parser.parse_args(arguments)
    bench, said = Bench(given.model), Said()
    texts = Numbers(bench)
    with tempfile.TemporaryDirectory() as folder, served(bench, Path(folder), *MEMORY) as (url, process, _):
        announce(f"teaching {TASKS} tasks")
        taught = [[(texts(), NAMES[(place + task) % 3]) for place in range(SUPPORT)] for task in range(TASKS)]
        versions = [{1: list(pairs)} for pairs in taught]
        asyncio.run(_load(url, process, 60 * given.minutes, texts, versions, said))
    announce(f"checking the answers of {CHECKED} tasks offline")
    worst, checked = _check(AbmllModel.from_base(model_folder(bench)), versions, said)
    late = [size for since, size in said.memory if since >= SETTLED * 60 * given.minutes]
    third = max(1, len(late) // 3)
    growth = sum(late[-third:]) / sum(late[:third])
    seconds = sorted(said.seconds)
    found = {
        "minutes": given.minutes,
        "requests": said.asked,
        "answered": len(said.seconds),
        "refused_429": said.refused,
        "failed": len(said.failed),
        "other_bytes": said.other_bytes,
        "versions_taught": sum(map(len, versions)),
        "checked_answers": checked,
        "largest_difference": worst,
        "memory_growth": growth,
        "memory_mb": [round(size) for _, size in said.memory[:: max(1, len(said.memory) // 20)]],
        "median_seconds": seconds[len(seconds) // 2],
        "p99_seconds": seconds[int(0.99 * len(seconds))],
        "requests_per_second": len(said.seconds) / (60 * given.minutes),
        "machine": machine.machine("cpu"),
    }
    write_json(given.output, found)
    for name, value in found.items():
        announce(f"{name}: {value}")
    for line in said.failed[:5]:
        announce(f"failed: {line}")
    is_lost = said.asked != len(said.seconds) + said.refused
    return int(bool(said.failed or said.other_bytes or is_lost) or worst > TOLERANCE or growth > 1.05)


async def _load(
    url: str, process: int, seconds: float, texts: Numbers, versions: list[dict[int, list[Pair]]], said: Said
) -> None:
    limits = httpx.Limits(max_connections=CLIENTS + 2, max_keepalive_connections=CLIENTS + 2)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        for task, known in enumerate(versions):
            body = {"name": f"task{task}", "examples": _rows(known[1])}
            (await client.post("/v1/tasks", json=body)).raise_for_status()
        end = time.monotonic() + seconds
        asking = [_ask(client, number, end, texts, said) for number in range(CLIENTS)]
        await asyncio.gather(*asking, _teach(client, end, texts, versions), _watch(process, seconds, end, said))


async def _ask(client: httpx.AsyncClient, number: int, end: float, texts: Numbers, said: Said) -> None:
    chosen, given = random.Random(number), ("", b"", {})
    while time.monotonic() < end:
        task, is_again = chosen.randrange(TASKS), bool(given[0]) and chosen.random() < 0.1
        body = given[2] if is_again else {"texts": [texts() for _ in range(chosen.choice((1, 1, 2, 4)))]}
        path = given[0] if is_again else f"/v1/tasks/task{task}/predict"
        started = time.monotonic()
        said.asked += 1
        try:
            response = await client.post(path, json=body)
        except httpx.HTTPError as error:
            said.failed.append(repr(error))
            continue
        if response.status_code == 429:
            said.refused += 1
            await asyncio.sleep(float(response.headers["retry-after"]))
        elif response.status_code != 200:
            said.failed.append(f"{response.status_code} {response.text[:200]}")
        else:
            said.seconds.append(time.monotonic() - started)
            if is_again:
                said.other_bytes += response.content != given[1]
                continue
            found = response.json()
            pairs = zip(body["texts"], found["answers"], strict=True)
            said.answers += [(task, found["version"], text, answer) for text, answer in pairs]
            given = (path, response.content, {**body, "version": found["version"]})


async def _teach(client: httpx.AsyncClient, end: float, texts: Numbers, versions: list[dict[int, list[Pair]]]) -> None:
    chosen = random.Random(0)
    while time.monotonic() + BETWEEN < end:
        await asyncio.sleep(BETWEEN)
        task, pair = chosen.randrange(TASKS), (texts(), chosen.choice(NAMES))
        newest = max(versions[task])
        versions[task][newest + 1] = [*versions[task][newest], pair]  # before anybody can be answered with it
        response = await client.put(f"/v1/tasks/task{task}/examples", json={"examples": _rows([pair])})
        response.raise_for_status()
        assert response.json()["version"] == newest + 1


async def _watch(process: int, seconds: float, end: float, said: Said) -> None:
    with progress(round(seconds), "asking", "second") as bar:
        while (left := end - time.monotonic()) > 0:
            said.memory.append((seconds - left, resident(process)))
            await asyncio.sleep(min(5.0, left))
            bar.update(min(5, round(left)))


def _check(model: AbmllModel, versions: list[dict[int, list[Pair]]], said: Said) -> tuple[float, int]:
    """The largest difference of a probability from the library's own, and how many answers were compared."""
    groups: dict[tuple[int, int], list[tuple[str, dict[str, Any]]]] = {}
    for task, version, text, answer in said.answers:
        if task < CHECKED:
            groups.setdefault((task, version), []).append((text, answer))
    worst, checked = 0.0, 0
    for (task, version), own in progress(sorted(groups.items()), "checking", "version"):
        posterior = model.adapt(versions[task][version], task_name=f"task{task}")
        probs = posterior.predict([text for text, _ in own]).lists()
        for (_, answer), row in zip(own, probs, strict=True):
            wanted = dict(zip(posterior.labels, row, strict=True))
            worst = max(worst, *(abs(answer["probabilities"][label] - prob) for label, prob in wanted.items()))
            checked += 1
    return worst, checked


def _rows(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in pairs]


if __name__ == "__main__":
    sys.exit(main())
