"""The language model token by token, for ``completions``: its passes wait in the same queue as everybody's."""

import asyncio
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool
from transformers import PreTrainedTokenizerBase

from abmll.common.errors import CheckpointError
from abmll.language.adapter import Adapter
from abmll.language.scorer import OptionScorer
from abmll.language.token_scores import TokenScores, Wanted, check_tokens, token_scores
from abmll.model.learned_task import TaskPosterior
from abmll.serving.engine import Engine
from abmll.serving.fair_queue import Request
from abmll.serving.problems import Problem
from abmll.serving.resident import Resident
from abmll.serving.task_store import NoSuchTask, StoredTask, TaskStore
from abmll.serving.teacher import Teacher

TOKENS = "tokens"  # the kind of these rows
BASE = "base"
MOST_NAMES = 1000


class TokenRow(NamedTuple):
    """A text whose tokens are scored; ``len`` is how many it has."""

    scorer: OptionScorer
    phi: Adapter | None
    ids: Sequence[int]
    wanted: Wanted

    def __len__(self) -> int:
        return len(self.ids)


class ScoredTokens:
    """What ``completions`` asks of a server."""

    def __init__(self, store: TaskStore, resident: Resident, engine: Engine, teacher: Teacher) -> None:
        self.store = store
        self.resident = resident
        self.engine = engine
        self.teacher = teacher

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The language model's."""
        return self.resident.reading.scorer.base.tokenizer

    async def model_names(self, tenant: str) -> list[str]:
        """``base``, and a tenant's tasks that have adapters."""
        tasks = await run_in_threadpool(self.store.tasks, tenant, "", MOST_NAMES)
        names = [BASE]
        for task in tasks:
            if task.how == "full":
                try:
                    members = len((await self._posterior(task)).members)
                except (NoSuchTask, CheckpointError):  # it cannot be asked yet, or any more
                    continue
                names += [task.name] if members == 1 else [f"{task.name}/{number}" for number in range(members)]
        return names

    async def token_scores(
        self, tenant: str, model: str, texts: Sequence[Sequence[int]], wanted: Wanted
    ) -> list[TokenScores]:
        """Scores of texts in token ids, by the bare model or with a task's adapter at its mean.

        Raises ``Problem`` for a model that there is not, ``QueueFull``.
        """
        scorer, phi = await self._model(tenant, model)
        check_tokens(scorer, texts, wanted)  # here it names the text by its place in the request
        rows = [TokenRow(scorer, phi, text, wanted) for text in texts]
        request = Request(tenant, TOKENS, rows, list, inf)
        self.engine.submit(request)
        return await asyncio.wrap_future(request.future)

    async def _model(self, tenant: str, model: str) -> tuple[OptionScorer, Adapter | None]:
        if model == BASE:
            return self.resident.reading.scorer, None
        name, _, member = model.partition("/")
        task = await run_in_threadpool(self.store.task, tenant, name)
        if task.how == "head":
            raise Problem(422, f"model: '{name}' is learned by a head and has no adapter; ask /v1/tasks/{name}/predict")
        posterior = await self._posterior(task)
        number = -1
        if not member and len(posterior.members) == 1:
            number = 0
        elif member.isdecimal() and len(member) < 4:
            number = int(member)
        if not 0 <= number < len(posterior.members):
            raise Problem(404, f"model: there is no '{model[:100]}'; /v1/models lists those there are")
        return posterior.scorer, posterior.members[number]

    async def _posterior(self, task: StoredTask) -> TaskPosterior:
        row = await run_in_threadpool(self.store.version, task)
        return await asyncio.shield(asyncio.wrap_future(self.teacher.known(task, row)))


def score_tokens(rows: Sequence[TokenRow]) -> list[TokenScores]:
    """The scores of rows of whatever models: one call for those of one adapter that want the same."""
    groups: dict[tuple[int, int, Wanted], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((id(row.scorer), id(row.phi), row.wanted), []).append(number)
    found: dict[int, TokenScores] = {}
    for own in groups.values():
        first = rows[own[0]]
        scores = token_scores(first.scorer, [rows[number].ids for number in own], first.phi, first.wanted)
        found |= zip(own, scores, strict=True)
    return [found[number] for number in range(len(rows))]
