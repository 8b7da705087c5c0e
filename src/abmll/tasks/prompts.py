"""How an example becomes text: instruction, question, choices, and the continuations that compete as answers."""

import string
from collections.abc import Sequence
from typing import NamedTuple

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.tasks.types import Example, WrittenExample

INSTRUCTIONS = {
    "letter": "Return only the label of the correct answer for the question below.",
    "text": "Return only the text of the correct answer for the question below.",
}


class Rendered(NamedTuple):
    """A prompt in three parts, ``prefix + input + suffix``: where it is too long, only the input may be cut.

    ``continuations`` holds what is scored after the prompt, one text per option.
    """

    prefix: str
    input: str
    suffix: str
    continuations: tuple[str, ...]


def render(example: Example, task_name: str, prompt: PromptConfig, demonstrations: Sequence[Example] = ()) -> Rendered:
    """The prompt of an example, as in the paper's experiments:

        Return only the label of the correct answer for the question below.
        <blank line>
        <task>: <input>
        Choices:
        A) <first option>
        B) <second option>
        Answer:

    Continuations are ``" A"``, ``" B"``, ... for ``answer="letter"`` and a space and the option for ``answer="text"``.
    With a chat template they have no leading space: there the assistant's turn begins right after the template
    (which the language side wraps around the prompt). Unless asked for, the choices are listed for letters only: models
    too small to choose from a list answer better without one. White space around input and options is dropped.

    An answer that is written has no list of choices, the instruction of a text, and the output as its continuation.

    ``demonstrations`` stand between instruction and question, each with its answer and a blank line after it.

    Raises:
        ConfigError: letters without a list of options to which they belong.
        DataError: more options to be listed than there are letters.
    """
    check_prompt(prompt)
    wanted = "text" if isinstance(example, WrittenExample) else prompt.answer
    instruction = f"{INSTRUCTIONS[wanted]}\n\n" if prompt.instruction else ""
    shown = "".join(_demonstrate(demonstration, task_name, prompt) for demonstration in demonstrations)
    suffix, answers = _question(example, task_name, prompt)
    space = "" if prompt.chat_template else " "
    return Rendered(
        prefix=f"{instruction}{shown}{task_name}: ",
        input=example.input.strip(),
        suffix=suffix,
        continuations=tuple(space + answer for answer in answers),
    )


def _demonstrate(example: Example, task_name: str, prompt: PromptConfig) -> str:
    """A question with its right answer."""
    suffix, answers = _question(example, task_name, prompt)
    assert example.answer is not None
    return f"{task_name}: {example.input.strip()}{suffix} {answers[example.answer]}\n\n"


def _question(example: Example, task_name: str, prompt: PromptConfig) -> tuple[str, Sequence[str]]:
    """What follows the input, and the answers to choose from."""
    options, letters = [option.strip() for option in example.options], string.ascii_uppercase
    listed = prompt.answer == "letter" if prompt.list_options is None else prompt.list_options
    if not listed or isinstance(example, WrittenExample):
        return "\nAnswer:", options
    if len(options) > len(letters):
        raise DataError(
            f"task '{task_name}', example '{example.id}': {len(options)} options, but a list has letters for "
            f"{len(letters)}; set answer 'text' and no list_options, or give fewer options"
        )
    choices = "".join(f"\n{letter}) {option}" for letter, option in zip(letters, options, strict=False))
    return f"\nChoices:{choices}\nAnswer:", letters[: len(options)] if prompt.answer == "letter" else options


def check_prompt(prompt: PromptConfig) -> None:
    """Raise ``ConfigError`` for prompt settings that contradict each other."""
    if prompt.answer not in INSTRUCTIONS:
        raise ConfigError(f"answer is {prompt.answer!r}; use 'letter' or 'text'")
    if prompt.answer == "letter" and prompt.list_options is False:
        raise ConfigError("answer 'letter' needs the options in the prompt; set list_options true or answer 'text'")
