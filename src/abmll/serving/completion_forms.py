"""What OpenAI's completions are asked with, and what they answer, as JSON."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema

from abmll.language.token_scores import Wanted


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """A prompt in any of its four forms as a list of prompts."""
    if isinstance(value, str):
        return [_whole(value)]
    if isinstance(value, list) and value:
        if all(isinstance(one, str) for one in value):
            return [_whole(one) for one in value]
        if _are_ids(value):
            return [value]
        if all(isinstance(one, list) and _are_ids(one) for one in value):
            return value
    raise ValueError("should be a text, a list of token ids, or a list of either")


def _whole(text: str) -> str:
    """A text without half a surrogate pair, which JSON can have and UTF-8 has not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("should have no half of a surrogate pair") from error
    return text


def _are_ids(value: list[Any]) -> bool:
    return all(type(one) is int for one in value)  # true is no token


_IDS = {"type": "array", "items": {"type": "integer"}}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_FORMS = {"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}


class CompletionRequest(BaseModel):
    """OpenAI's request, with vLLM's two additions. Sampling settings are ignored: the next token is the likeliest."""

    model: Annotated[str, AfterValidator(_whole)] = Field(description="base, TASK or TASK/MEMBER")
    prompt: Annotated[Any, AfterValidator(_prompts), WithJsonSchema(_FORMS)]
    max_tokens: Annotated[int, Field(ge=0, le=1, strict=True)] = 1
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    logprob_token_ids: (
        Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1, max_length=256)] | None
    ) = None
    return_tokens_as_token_ids: bool = False
    echo: bool = False
    n: Literal[1] = 1
    best_of: Literal[1] | None = None
    stream: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def wanted(self) -> Wanted:
        """What has to be known of each prompt."""
        if self.logprobs is None:
            return Wanted()
        return Wanted(every=self.echo, top=self.logprobs, chosen=tuple(self.logprob_token_ids or ()))


class TokenLogs(BaseModel):
    """The log-probabilities of a choice's tokens, in nats; null for a first token, which nothing comes before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """The answer to one prompt."""

    index: int
    text: str
    logprobs: TokenLogs | None
    finish_reason: Literal["length", "stop"]


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """OpenAI's response."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """A name that a request may ask for."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "abmll"


class Models(BaseModel):
    """All such names."""

    object: Literal["list"] = "list"
    data: list[Model]
