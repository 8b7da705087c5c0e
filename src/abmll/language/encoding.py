"""From a rendered prompt to token ids, with the middle of an over-long input cut out (never the options)."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from abmll.config import PromptConfig
from abmll.errors import ConfigError, DataError
from abmll.tasks.prompts import Rendered, check_prompt, render
from abmll.tasks.task import Example

GAP = " ... "


@dataclass(frozen=True)
class Encoded:
    """One example in tokens: the prompt, each option's continuation, the answer's index (None: unknown).

    ``truncated`` counts the tokens cut out of the input.
    """

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    answer: int | None
    truncated: int = 0

    def __len__(self) -> int:
        """The length of the sequence the model reads: an option's last token is only ever predicted."""
        return len(self.prompt) + sum(len(option) - 1 for option in self.options)


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

    def encode(self, example: Example, task_name: str) -> Encoded:
        """The example in tokens.

        Raises ``DataError`` where prompt frame and options leave no room for any of the input, or where an option
        has no tokens.
        """
        rendered = render(example, task_name, self.settings)
        encoded = self._tokens(rendered, example.answer)
        for option, tokens in zip(example.options, encoded.options, strict=True):
            if not tokens:
                raise DataError(
                    f"task '{task_name}', example '{example.id}': the model's tokenizer makes nothing of option "
                    f"{option!r}; write it in other characters"
                )
        excess = len(encoded) - self.limit
        if excess <= 0:
            return encoded
        words = self._plain(rendered.input)
        keep = len(words) - excess - len(self._plain(GAP))
        while keep > 0:
            head = keep - keep // 2
            shorter = self._text(words[:head]) + GAP + self._text(words[len(words) - keep // 2 :])
            encoded = self._tokens(rendered._replace(input=shorter), example.answer, len(words) - keep)
            if len(encoded) <= self.limit:
                return encoded
            # Cutting can split a word into more tokens than it had.
            keep -= len(encoded) - self.limit
        raise DataError(
            f"task '{task_name}', example '{example.id}': options and prompt frame leave no room for the input within "
            f"{self.limit} tokens; shorten the options or raise max_length"
        )

    def _tokens(self, rendered: Rendered, answer: int | None, truncated: int = 0) -> Encoded:
        text = rendered.prefix + rendered.input + rendered.suffix
        if self.settings.chat_template:
            turns = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert isinstance(text, str)
            prompt = self._plain(text)  # the template has written the special tokens itself
        else:
            prompt = self._opening() + self._plain(text)
        options = tuple(self._continuation(text, option) for option in rendered.continuations)
        return Encoded(tuple(prompt), options, answer, truncated)

    def _continuation(self, text: str, option: str) -> tuple[int, ...]:
        """The option's tokens as they follow the prompt.

        Some tokenizers encode a text differently at the start of a sequence, so the option is tokenised behind the
        prompt's last character wherever the boundary falls between two tokens.
        """
        last = text[-1:]
        joint, alone = self._plain(last + option), self._plain(last)
        tokens = joint[len(alone) :] if joint[: len(alone)] == alone else self._plain(option)
        return tuple(tokens)

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore

    def _text(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens)
        assert isinstance(text, str)
        return text

    def _opening(self) -> list[int]:
        """The special tokens the tokenizer itself puts before a text (a BOS for Llama and Gemma, none for SmolLM2)."""
        with_special = self.tokenizer("x", verbose=False)["input_ids"]
        plain = self._plain("x")
        return list(with_special[: with_special.index(plain[0])])  # pyright: ignore
