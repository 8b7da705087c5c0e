"""A server without its network: the store, the model in memory, and the threads that learn and answer."""

import json
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
from sqlalchemy import Row

from abmll.model.beginnings import Beginnings
from abmll.model.meta_learner import AbmllModel
from abmll.serving.answer_store import AnswerStore
from abmll.serving.answerer import Answerer, read_with_adapters
from abmll.serving.database import connect, shown
from abmll.serving.engine import Engine
from abmll.serving.fresh_threads import FreshThreads
from abmll.serving.gauges import Gauges
from abmll.serving.job_store import WAITING, JobStore
from abmll.serving.jobs import Jobs
from abmll.serving.limits import ServeConfig
from abmll.serving.memory import Memory
from abmll.serving.objects import Objects
from abmll.serving.peers import Peers
from abmll.serving.posterior_files import PosteriorFiles
from abmll.serving.resident import Resident
from abmll.serving.scored import TOKENS, ScoredTokens, score_tokens
from abmll.serving.task_store import StoredTask, TaskStore, in_order
from abmll.serving.teacher import ANSWERS, FEATURES, Teacher

# What was read of the last texts, and of what the prompts of tasks with adapters begin with, takes memory besides: so
# much of what learned tasks may take.
FEATURES_SHARE, BEGINNINGS_SHARE = 1 / 8, 1 / 2
LOADERS = 2  # tasks that are loaded at a time because they are asked, and fitted where they have not been


class Service:
    """All that requests are answered with.

    Args:
        model: the language model, with its theta where it has one; or what loads it. The thread that reads with a model
            is the fastest if it has loaded it as well (``Engine.do``).
        database: SQLAlchemy's address of the database.
        files: the folder of posteriors, or fsspec's address of one.
        limits: how much may be asked.
    """

    def __init__(
        self, model: AbmllModel | Callable[[], AbmllModel], database: str, files: str, limits: ServeConfig
    ) -> None:
        self.limits = limits
        self.gauges = Gauges()
        self.server = uuid.uuid4().hex
        engine, where = connect(database), shown(database)
        self.store = TaskStore(engine, where, self.server)
        self.job_store = JobStore(engine, where, self.server)
        self.engine = Engine({}, limits, 0, self.gauges.passed)
        memory = limits.memory_mb * 1e6
        load = (lambda: model) if isinstance(model, AbmllModel) else model
        self.resident = self.engine.do(lambda: Resident(load(), FEATURES_SHARE * memory)).result()
        self.engine.longest = self.resident.longest
        answer = partial(read_with_adapters, beginnings=Beginnings(int(BEGINNINGS_SHARE * memory)))
        self.engine.readers = {FEATURES: self.resident.read, ANSWERS: answer, TOKENS: score_tokens}
        self.engine.share([FEATURES], self.resident.lanes, self.resident.begin)
        self.store.claim(self.resident.belongs_to)
        self.files = PosteriorFiles(self.store, Objects(files), self.resident)
        self.loaders, self.fitters = FreshThreads(LOADERS, alone), FreshThreads(1, alone)
        self.memory = Memory(memory, size_of, self.loaders)
        self.teacher = Teacher(self.store, self.files, self.resident, self.engine, self.memory, self.fitters)
        quick = connect(database, durable=False)
        answers = AnswerStore(quick, where, limits.kept_answers)
        self.answerer = Answerer(self.resident, self.engine, self.teacher, answers)
        self.databases = [engine, quick]
        self.scored = ScoredTokens(self.store, self.resident, self.engine, self.teacher)
        lanes = {"head": self.teacher.learn_head, "full": self.teacher.learn_by_steps}
        self.peers = Peers(engine, where, self.server)  # it is known as living before it takes jobs
        self.jobs = Jobs(self.job_store, lanes, alone)
        self.peers.watch(self.jobs)
        self.gauges.watch(self)

    def close(self) -> None:
        """Let what runs come to its end. What waits is done after the next start, or by another server."""
        self.jobs.stop()  # while the engine reads for them
        self.engine.stop()
        for executor in (self.loaders, self.fitters):
            executor.shutdown(wait=True, cancel_futures=True)
        self.peers.leave()
        for database in self.databases:
            database.dispose()

    def describe(self, task: StoredTask) -> dict[str, Any]:
        """A task as clients see it."""
        versions = self.store.versions(task)
        job = self.job_store.newest(task.id)
        learned = next((row for row in versions if row.document is not None), None)
        is_busy = job.state == WAITING
        if learned is None:
            state = "learning" if is_busy else "failed"
        elif learned.state == "damaged":
            state = "updating" if is_busy else "damaged"
        else:
            state = "updating" if is_busy else "ready"
        newest = versions[0]
        counts = self.store.counts(task, newest.version)
        return {
            "name": task.name,
            "state": state,
            "how": task.how,
            "version": None if learned is None else learned.version,
            "labels": in_order(json.loads((learned or newest).labels), task.label_order),
            "counts": counts,
            "num_examples": sum(counts.values()),
            "label_order": task.label_order,
            "created": moment(task.created),
            "updated": moment(newest.created),
            "quality": None if learned is None else summary(learned),
            "job": job.id if is_busy else None,
            "error": learned.error if state == "damaged" and learned is not None else job.error,
        }

    def describe_job(self, row: "Row[Any]") -> dict[str, Any]:
        """A job as clients see it."""
        live = self.jobs.live.get(row.id) if row.state == WAITING else None
        state = "running" if live is not None and live.is_running else row.state
        return {
            "id": row.id,
            "task": row.task_name,
            "kind": row.kind,
            "state": state,
            "done": live.done if live else 0,
            "total": live.total if live else 0,
            "error": row.error,
            "version": row.version,
        }

    def delete(self, task: StoredTask) -> None:
        """Delete a task with all that belongs to it."""
        self.jobs.cancel_all(task.id)
        self.store.delete(task)
        self.memory.drop(lambda key: key[0] == task.id)
        self.files.delete(task)


def alone() -> None:
    """Called first in a thread beside the engine's: it has no helpers, which would make those of the engine slow."""
    torch.set_num_threads(1)


def moment(seconds: float) -> str:
    """A time as JSON has it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def quality_of(row: "Row[Any]") -> dict[str, Any] | None:
    """What is known of a version's quality, where it was measured; ``each`` has every example's part."""
    return None if row.quality is None else json.loads(row.quality)


def summary(row: "Row[Any]") -> dict[str, Any] | None:
    """``quality_of`` without each example's part."""
    found = quality_of(row)
    return None if found is None else {name: value for name, value in found.items() if name != "each"}


def size_of(posterior: Any) -> int:
    """About how many bytes a posterior takes in memory."""
    tensors = [
        tensor
        for phi in posterior.members
        if phi is not None and posterior.head is None
        for _, tensor in phi.named_tensors()
    ]
    head = posterior.head
    if head is not None:
        # What was fitted is in memory about twice: as it is kept, and as it is used.
        tensors += [*head.features, *2 * list(head.fitted().values())]
    return 10_000 + sum(tensor.nbytes for tensor in tensors)
