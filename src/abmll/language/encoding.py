"""From rendered prompts to token ids, with the middle of an over-long input cut out (never the options)."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.tasks import Example, WrittenExample
from abmll.tasks.prompts import Rendered, check_prompt, render

GAP = " ... "
# The tokenizer gets many texts at once, but never so many that their tokens (as objects) would need much memory.
MAX_TEXTS = 256
MAX_CHARACTERS = 50_000


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in tokens.

    Args:
        prompt: with the special tokens that belong before it.
        options: each one's continuation of the prompt; a written answer's ends with the token that ends texts.
        answer: index of the right option; None where it is unknown.
        truncated: tokens cut out of the input.
        start: the prompt's tokens before the input.
        bare: the prompt with an empty input; nothing where demonstrations stand before it, or where it is text already.
    """

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    answer: int | None
    truncated: int = 0
    start: int = 0
    bare: tuple[int, ...] = ()

    def __len__(self) -> int:
        """The length of the sequence that the model reads: an option's last token is only ever predicted."""
        return len(self.prompt) + sum(map(len, self.options)) - len(self.options)

    @property
    def unasked(self) -> "Encoded":
        """The same options behind the prompt without its input. Raises ``ValueError`` where that is not known."""
        if not self.bare:
            raise ValueError("this prompt has no part without an input")
        return Encoded(self.bare, self.options, None)


class Encoder:
    """Turns examples into tokens under one prompt setting; the same in training and in prediction."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, context: int) -> None:
        check_prompt(prompt)
        if prompt.chat_template and not tokenizer.chat_template:
            raise ConfigError("chat_template: this model's tokenizer has none; set it to false")
        if prompt.max_length is not None and not 0 < prompt.max_length <= context:
            raise ConfigError(f"max_length: {prompt.max_length} is not within the model's context of {context} tokens")
        self.tokenizer = tokenizer
        self.settings = prompt
        self.limit = prompt.max_length or context

    def with_room(self, tokens: int) -> "Encoder":
        """An encoder whose prompts leave room for so many tokens. Raises ``ConfigError`` where that is all."""
        if tokens >= self.limit:
            raise ConfigError(f"max_new_tokens is {tokens}, but prompt and answer have {self.limit} tokens together")
        shorter = copy.copy(self)
        shorter.limit = self.limit - tokens
        return shorter

    def encode(self, example: Example, task_name: str) -> Encoded:
        """The example in tokens. Raises as ``encode_all``."""
        [encoded] = self.encode_all([example], task_name)
        return encoded

    def encode_all(
        self, examples: Iterable[Example], task_name: str, demonstrations: Sequence[Example] = ()
    ) -> Iterator[Encoded]:
        """The examples in tokens, in their order, in memory that their number does not change.

        Behind ``demonstrations`` an example may come out too long: see ``encode_demonstrated``.
        Raises ``DataError`` where prompt frame and options leave no room for any of the input, or where an option
        has no tokens.
        """
        for portion in _portions(examples):
            yield from self._encode_portion(portion, task_name, demonstrations)

    def encode_demonstrated(
        self, examples: Sequence[Example], task_name: str, demonstrations: Sequence[Example]
    ) -> tuple[list[Encoded], int]:
        """The examples in tokens behind ``demonstrations``, and how many of these were left out over all examples.

        Where an example is too long with all of them, the last ones are left out until it fits; only an example that
        is too long by itself loses the middle of its input. Raises as ``encode_all``.
        """
        encoded = list(self.encode_all(examples, task_name, demonstrations))
        long = [index for index, one in enumerate(encoded) if len(one) > self.limit]
        if not long:
            return encoded, 0
        fewer, dropped = self.encode_demonstrated([examples[index] for index in long], task_name, demonstrations[:-1])
        for index, one in zip(long, fewer, strict=True):
            encoded[index] = one
        return encoded, dropped + len(long)

    def _encode_portion(
        self, examples: Sequence[Example], task_name: str, demonstrations: Sequence[Example]
    ) -> Iterator[Encoded]:
        rendered = [render(example, task_name, self.settings, demonstrations) for example in examples]
        texts = [self.full_text(one) for one in rendered]
        tokens = self._option_tokens(texts, rendered)
        before = [text[: text.index(one.prefix) + len(one.prefix)] for text, one in zip(texts, rendered, strict=True)]
        bare = {} if demonstrations else self._without_input(rendered)
        openings = dict.fromkeys(before)
        starts = dict(zip(openings, self._prompts(list(openings)), strict=True))
        rows = zip(examples, rendered, texts, before, self._prompts(texts), strict=True)
        for example, one, text, opening, prompt in rows:
            where = f"task '{task_name}', example '{example.id}'"
            options = tuple(tokens[text[-1:], option] for option in one.continuations)
            if () in options:
                raise DataError(
                    f"{where}: the model's tokenizer makes nothing of option {example.options[options.index(())]!r}; "
                    "write it in other characters"
                )
            if isinstance(example, WrittenExample):
                options = tuple((*option, self.end) for option in options)
            start = _in_common(starts[opening], prompt)  # a last space may join the input's first word
            encoded = Encoded(prompt, options, example.answer, start=start, bare=bare.get((one.prefix, one.suffix), ()))
            fits = len(encoded) <= self.limit or len(demonstrations) > 0
            yield encoded if fits else self._cut(encoded, one, where)

    def _cut(self, encoded: Encoded, rendered: Rendered, where: str) -> Encoded:
        """``encoded`` with so much of the middle of its input left out that it is within the limit."""
        [words, gap] = self._plain([rendered.input, GAP])
        keep = len(words) - (len(encoded) - self.limit) - len(gap)
        while keep > 0:
            head = keep - keep // 2
            shorter = self._text(words[:head]) + GAP + self._text(words[len(words) - keep // 2 :])
            [prompt] = self._prompts([self.full_text(rendered._replace(input=shorter))])
            encoded = replace(encoded, prompt=prompt, truncated=len(words) - keep)
            if len(encoded) <= self.limit:
                return encoded
            # Cutting can split a word into more tokens than it had.
            keep -= len(encoded) - self.limit
        raise DataError(
            f"{where}: options and prompt frame leave no room for the input within "
            f"{self.limit} tokens; shorten the options or raise max_length"
        )

    def _without_input(self, rendered: Sequence[Rendered]) -> dict[tuple[str, str], tuple[int, ...]]:
        """Prompts with an empty input, in tokens, by what stands before and behind it."""
        frames = {(one.prefix, one.suffix): one._replace(input="") for one in rendered}
        return dict(zip(frames, self._prompts([self.full_text(one) for one in frames.values()]), strict=True))

    def full_text(self, rendered: Rendered) -> str:
        """The whole prompt, inside the chat template if that is asked for."""
        text = rendered.prefix + rendered.input + rendered.suffix
        if self.settings.chat_template:
            turns = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert isinstance(text, str)
        return text

    def _prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokens of whole prompts; a chat template has written the special tokens itself."""
        return [(*self.opening, *tokens) for tokens in self._plain(texts)]

    def encode_text(self, text: str, continuations: Sequence[str]) -> Encoded:
        """A prompt that is text already, and what competes to follow it; of a longer one the beginning is left out."""
        [prompt] = self._prompts([text])
        encoded = Encoded(prompt, tuple(self.answer_tokens(text, continuations)), None)
        excess = max(0, len(encoded) - self.limit)
        return replace(encoded, prompt=prompt[excess:], truncated=excess)

    def answer_tokens(self, text: str, continuations: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of each continuation as it follows the prompt ``text``."""
        rendered = Rendered("", "", text, tuple(continuations))
        tokens = self._option_tokens([text], [rendered])
        return [tokens[text[-1:], one] for one in continuations]

    def _option_tokens(
        self, texts: Sequence[str], rendered: Sequence[Rendered]
    ) -> dict[tuple[str, str], tuple[int, ...]]:
        """The tokens of every option as it follows its prompt, by (the prompt's last character, the option).

        Some tokenizers encode a text differently at the start of a sequence, so an option is tokenised behind the
        prompt's last character wherever the boundary falls between two tokens.
        """
        pairs = {
            (text[-1:], option): None for text, one in zip(texts, rendered, strict=True) for option in one.continuations
        }
        lasts = list(dict.fromkeys(last for last, _ in pairs))
        before = dict(zip(lasts, self._plain(lasts), strict=True))
        joint = self._plain([last + option for last, option in pairs])
        alone = self._plain([option for _, option in pairs])
        found = {}
        for (last, option), together, by_itself in zip(pairs, joint, alone, strict=True):
            size = len(before[last])
            found[last, option] = tuple(together[size:] if together[:size] == before[last] else by_itself)
        return found

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's tokens and nothing else."""
        if not texts:
            return []
        encoding = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return encoding["input_ids"]  # pyright: ignore[reportReturnType] (its type covers all that could be asked for)

    def _text(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens)
        assert isinstance(text, str)
        return text

    @property
    def end(self) -> int:
        """The token behind an answer that is written. Raises ``ConfigError`` where the tokenizer has none."""
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ConfigError("model: its tokenizer has no token that ends a text (eos_token), so it cannot write one")
        return end

    @cached_property
    def opening(self) -> list[int]:
        """The special tokens the tokenizer itself puts before a text (a BOS for Llama and Gemma, none for SmolLM2).

        None with a chat template, which has written them itself.
        """
        if self.settings.chat_template:
            return []
        with_special = self.tokenizer("x", verbose=False)["input_ids"]
        [plain] = self._plain(["x"])
        return list(with_special[: with_special.index(plain[0])])  # pyright: ignore


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with; at most all but the last of ``other``."""
    limit = min(len(one), len(other) - 1)
    return next((place for place in range(limit) if one[place] != other[place]), limit)


def _portions(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples in portions that the tokenizer takes at once."""
    portion: list[Example] = []
    characters = 0
    for example in examples:
        portion.append(example)
        characters += len(example.input) + sum(map(len, example.options))
        if len(portion) == MAX_TEXTS or characters > MAX_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion
