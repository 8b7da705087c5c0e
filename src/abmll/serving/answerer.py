"""Answers texts with what was learned: those of many requests and tasks in one pass."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from starlette.concurrency import run_in_threadpool

from abmll.model.beginnings import Beginnings
from abmll.model.learned_task import TaskPosterior
from abmll.model.prediction import Prediction
from abmll.model.together import Request as Asked
from abmll.model.together import predict_together
from abmll.serving.answer_store import AnswerStore
from abmll.serving.engine import Engine
from abmll.serving.fair_queue import Request, TooLate
from abmll.serving.resident import Read, Resident, together
from abmll.serving.storage_errors import StorageFull
from abmll.serving.task_store import StoredTask
from abmll.serving.teacher import ANSWERS, FEATURES, Teacher
from abmll.tasks import Example

LOG = logging.getLogger("abmll.serving")
DIGITS = 8  # of a number in an answer, behind the point


class AdapterRow(NamedTuple):
    """A text that is to be answered with adapters; ``len`` is its tokens."""

    posterior: TaskPosterior
    example: Example
    tokens: int

    def __len__(self) -> int:
        return self.tokens


class Answered(NamedTuple):
    """One text's answer: of C options."""

    probs: torch.Tensor  # (C,)
    entropy: float
    mutual_information: float


class Answerer:
    """Answers with versions of tasks that are in memory, or come into it when they are asked."""

    def __init__(self, resident: Resident, engine: Engine, teacher: Teacher, answers: AnswerStore) -> None:
        self.resident = resident
        self.engine = engine
        self.teacher = teacher
        self.answers = answers

    async def predict(self, task: StoredTask, row: Any, texts: Sequence[str], seconds: float) -> list[str]:
        """The JSON of the answer to each text with the version of ``row``, within so many seconds.

        What was answered before is answered alike. Raises ``TooLate``, ``QueueFull``, ``CheckpointError``,
        ``DataError``.
        """
        deadline = time.monotonic() + seconds
        given = await run_in_threadpool(self.answers.given, task.id, row.version, texts)
        missing = [text for text in dict.fromkeys(texts) if text not in given]
        if missing:
            known = asyncio.wrap_future(self.teacher.known(task, row))
            posterior = await _within(deadline, asyncio.shield(known))
            request, truncated = await run_in_threadpool(self._request, task, posterior, missing, deadline)
            self.engine.submit(request)
            answered = await _within(deadline, asyncio.wrap_future(request.future))
            new = {
                text: _document(posterior.labels, one, cut)
                for text, one, cut in zip(missing, answered, truncated, strict=True)
            }
            given |= await run_in_threadpool(self._kept, task, row.version, new)
        return [given[text] for text in texts]

    def _kept(self, task: StoredTask, version: int, new: Mapping[str, str]) -> Mapping[str, str]:
        """The answers as they were kept; where the disk takes no more, as they are."""
        try:
            return self.answers.keep(task.id, version, new)
        except StorageFull as error:
            LOG.warning("answers could not be kept: %s", error)
            return new

    def _request(
        self, task: StoredTask, posterior: TaskPosterior, texts: Sequence[str], deadline: float
    ) -> tuple[Request, list[bool]]:
        """What the engine is asked, and which texts are cut."""
        examples = [Example(str(n), text, posterior.labels, None) for n, text in enumerate(texts)]
        rows = self.resident.encode(examples, task.name)
        truncated = [row.encoded.truncated > 0 for row in rows]
        head = posterior.head
        if head is None:
            asked = [AdapterRow(posterior, one, len(row)) for one, row in zip(examples, rows, strict=True)]
            return Request(task.tenant, ANSWERS, asked, list, deadline), truncated

        def finish(read: list[Read]) -> list[Answered]:
            return _apart(head.answer(examples, together(read)))

        return Request(task.tenant, FEATURES, rows, finish, deadline), truncated


def read_with_adapters(rows: Sequence[AdapterRow], beginnings: Beginnings | None = None) -> list[Answered]:
    """The answers to rows of whatever tasks, each with its own task's adapters."""
    places: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        places.setdefault(id(row.posterior), []).append(number)
    groups = list(places.values())
    asked = [Asked(rows[own[0]].posterior, [rows[number].example for number in own]) for own in groups]
    found: dict[int, Answered] = {}
    for own, prediction in zip(groups, predict_together(asked, beginnings=beginnings), strict=True):
        found |= zip(own, _apart(prediction), strict=True)
    return [found[number] for number in range(len(rows))]


def _apart(prediction: Prediction) -> list[Answered]:
    """A prediction's rows."""
    numbers = zip(prediction.entropy.tolist(), prediction.mutual_information.tolist(), strict=True)
    return [Answered(probs, *own) for probs, own in zip(prediction.probs, numbers, strict=True)]


def _document(labels: Sequence[str], answered: Answered, truncated: bool) -> str:
    """An answer as JSON: the same text for the same answer."""
    probs = [round(prob, DIGITS) for prob in answered.probs.tolist()]
    best = int(answered.probs.argmax())
    document = {
        "label": labels[best],
        "probabilities": dict(zip(labels, probs, strict=True)),
        "entropy": round(answered.entropy, DIGITS),
        "mutual_information": round(answered.mutual_information, DIGITS),
        "truncated": truncated,
    }
    return json.dumps(document, ensure_ascii=False)


async def _within(deadline: float, awaited: Any) -> Any:
    try:
        return await asyncio.wait_for(awaited, max(deadline - time.monotonic(), 0.001))
    except asyncio.TimeoutError as error:
        raise TooLate("the time for this request is over; ask for less at once, or allow more time") from error
