"""The language model under OpenAI's names: ``POST /v1/completions`` and ``GET /v1/models``.

It is there for what reads log-probabilities, as lm-evaluation-harness does. Texts are not written here: at most the
likeliest next token is given. ``base`` is the bare language model, a task's name that model with the task's adapter.
"""

import copy
import time
import uuid
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import anyio
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from transformers import PreTrainedTokenizerBase

from abmll.language.token_scores import Place, TokenScores, Wanted
from abmll.serving.asking import Seconds, Tenant, while_connected
from abmll.serving.completion_forms import Choice, Completion, CompletionRequest, Model, Models, TokenLogs, Usage
from abmll.serving.json_bodies import StrictRoute
from abmll.serving.limits import ServeConfig
from abmll.serving.problems import Problem

MAX_NUMBERS = 1_000_000  # log-probabilities of one answer
LEAST = -9999.0  # in the place of a log-probability of minus infinity, which JSON does not have


class Scored(Protocol):
    """What completions need of a server: names and numbers of its language model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The language model's."""
        ...

    async def model_names(self, tenant: str) -> list[str]:
        """``base``, and the tasks of a tenant that have adapters: ``TASK``, and ``TASK/MEMBER`` for each of several."""
        ...

    async def token_scores(
        self, tenant: str, model: str, texts: Sequence[Sequence[int]], wanted: Wanted
    ) -> list[TokenScores]:
        """``language.token_scores`` of texts in token ids, by the model of that name.

        Raises ``Problem``: 404 where the tenant has no such model; 422 for a task that is learned by a head, which has
        no adapter, and says that /v1/tasks/TASK/predict asks it.
        """
        ...


def completions_router(scored: Scored, config: ServeConfig) -> APIRouter:
    """The two routes. They take the tenant from ``request.state``, where ``Authentication`` puts it."""
    router = APIRouter(tags=["completions"], route_class=StrictRoute)
    # Threads share no tokenizer with the engine: a tokenizer that is being used cannot change its settings.
    writer = Writer(copy.deepcopy(scored.tokenizer))

    @router.get("/v1/models")
    async def models(tenant: Tenant) -> Models:
        """The names that completions may be asked of."""
        return Models(data=[Model(id=name) for name in await scored.model_names(tenant)])

    @router.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request, tenant: Tenant, seconds: Seconds) -> Completion:
        """Log-probabilities of prompts' tokens, and the likeliest next one."""
        if len(asked.prompt) > config.max_texts:
            raise Problem(413, f"{len(asked.prompt):,} prompts; ask for {config.max_texts:,} at most at once")
        try:
            with anyio.fail_after(seconds):
                texts = await run_in_threadpool(writer.ids, asked.prompt)
                refuse_many(texts, asked.wanted)
                scores = scored.token_scores(tenant, asked.model, texts, asked.wanted)
                found = await while_connected(request, scores)
        except TimeoutError as error:
            detail = f"not answered within {seconds:g} seconds; ask for less, or set the header Request-Timeout"
            raise Problem(504, detail, word="deadline") from error
        return await run_in_threadpool(writer.completion, asked, texts, found)

    return router


def refuse_many(texts: Sequence[Sequence[int]], wanted: Wanted) -> None:
    """Raise ``Problem`` where an answer would have too many numbers."""
    places = sum(map(len, texts)) if wanted.every else len(texts)
    numbers = places * (1 + max(wanted.top, len(wanted.chosen)))
    if numbers > MAX_NUMBERS:
        raise Problem(
            413, f"{numbers:,} log-probabilities; ask for {MAX_NUMBERS:,} at most, with fewer prompts at once"
        )


class Writer:
    """Turns texts into token ids, and scores into OpenAI's words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def ids(self, prompts: list[str] | list[list[int]]) -> list[list[int]]:
        """The prompts in token ids, a text's as its tokenizer opens and closes it."""
        texts: Any = prompts
        return self.tokenizer(texts, verbose=False)["input_ids"] if isinstance(prompts[0], str) else texts

    def completion(
        self, asked: CompletionRequest, texts: Sequence[Sequence[int]], found: Sequence[TokenScores]
    ) -> Completion:
        """The response."""
        pairs = enumerate(zip(texts, found, strict=True))
        choices = [self._choice(asked, index, text, scores) for index, (text, scores) in pairs]
        read, written = sum(map(len, texts)), asked.max_tokens * len(texts)
        return Completion(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=asked.model,
            choices=choices,
            usage=Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written),
        )

    def _choice(self, asked: CompletionRequest, index: int, text: Sequence[int], scores: TokenScores) -> Choice:
        ends = asked.max_tokens == 1 and scores.following.token == self.tokenizer.eos_token_id
        ids = [*(text if asked.echo else ()), *([scores.following.token] if asked.max_tokens and not ends else ())]
        logs = None
        if asked.logprobs is not None:
            tokens: list[tuple[int, Place | None]] = [(text[0], None)] if asked.echo else []
            places = (*scores.text, *([scores.following] if asked.max_tokens else []))
            logs = self._logs([*tokens, *((place.token, place) for place in places)], asked.return_tokens_as_token_ids)
        return Choice(index=index, text=self._text(ids), logprobs=logs, finish_reason="stop" if ends else "length")

    def _logs(self, tokens: Sequence[tuple[int, Place | None]], as_ids: bool) -> TokenLogs:
        """Of tokens in their places; a first one has none."""
        texts = [self._text([token]) for token, _ in tokens]
        ends = list(accumulate(map(len, texts)))
        return TokenLogs(
            tokens=[f"token_id:{token}" for token, _ in tokens] if as_ids else texts,
            token_logprobs=[None if place is None else max(place.log_prob, LEAST) for _, place in tokens],
            top_logprobs=[None if place is None else self._top(place, as_ids) for _, place in tokens],
            text_offset=[end - len(text) for end, text in zip(ends, texts, strict=True)],
        )

    def _top(self, place: Place, as_ids: bool) -> dict[str, float]:
        """What else could stand there, and what does. Of tokens that read alike, as parts of a character do, the
        likeliest one counts.
        """
        found: dict[str, float] = {}
        for token, log in (*place.others.items(), (place.token, place.log_prob)):
            name = f"token_id:{token}" if as_ids else self._text([token])
            found[name] = max(found.get(name, LEAST), log)
        return found

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
