"""The prompt, letter for letter."""

import pytest

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.tasks import Example
from abmll.tasks.prompts import render

SKY = Example("1", " What colour is the sky?\n", ("blue ", "deep red"), 0)


def test_letters() -> None:
    rendered = render(SKY, "colours", PromptConfig(answer="letter"))
    assert rendered.prefix + rendered.input + rendered.suffix == (
        "Return only the label of the correct answer for the question below.\n"
        "\n"
        "colours: What colour is the sky?\n"
        "Choices:\n"
        "A) blue\n"
        "B) deep red\n"
        "Answer:"
    )
    assert rendered.input == "What colour is the sky?"
    assert rendered.continuations == (" A", " B")


def test_texts_without_instruction_and_list() -> None:
    rendered = render(SKY, "colours", PromptConfig(answer="text", instruction=False, list_options=False))
    assert rendered[:3] == ("colours: ", "What colour is the sky?", "\nAnswer:")
    assert rendered.continuations == (" blue", " deep red")


def test_texts_are_asked_for_as_texts() -> None:
    assert "the text of the correct answer" in render(SKY, "colours", PromptConfig(answer="text")).prefix


def test_with_a_chat_template_answers_begin_the_turn() -> None:
    assert render(SKY, "c", PromptConfig(answer="letter", chat_template=True)).continuations == ("A", "B")
    assert render(SKY, "c", PromptConfig(answer="text", chat_template=True)).continuations == ("blue", "deep red")


def test_twenty_six_options_have_letters() -> None:
    example = Example("1", "?", tuple(f"option {n}" for n in range(26)), 25)
    rendered = render(example, "t", PromptConfig(answer="letter"))
    assert rendered.continuations[-1] == " Z"
    assert rendered.suffix.endswith("\nZ) option 25\nAnswer:")


@pytest.mark.parametrize("prompt", [PromptConfig(answer="letter"), PromptConfig(answer="text", list_options=True)])
def test_a_list_has_letters_for_no_more(prompt: PromptConfig) -> None:
    example = Example("1", "?", tuple(f"option {n}" for n in range(27)), 25)
    with pytest.raises(
        DataError, match=r"^task 't', example '1': 27 options, but a list has letters for 26; set answer"
    ):
        render(example, "t", prompt)
    with pytest.raises(DataError, match="27 options"):
        render(SKY, "t", prompt, [example])
    assert len(render(example, "t", PromptConfig(answer="text")).continuations) == 27


def test_letters_need_a_list() -> None:
    with pytest.raises(ConfigError, match="list_options"):
        render(SKY, "colours", PromptConfig(answer="letter", list_options=False))
    with pytest.raises(ConfigError, match="'number'; use 'letter' or 'text'"):
        render(SKY, "colours", PromptConfig(answer="number"))  # type: ignore[arg-type] (a wrong one on purpose)


@pytest.mark.parametrize(
    ("prompt", "listed"),
    [
        (PromptConfig(answer="letter"), True),
        (PromptConfig(answer="text"), False),
        (PromptConfig(answer="text", list_options=True), True),
    ],
)
def test_choices_are_listed_for_letters_unless_asked_for(prompt: PromptConfig, listed: bool) -> None:
    assert ("Choices:" in render(SKY, "colours", prompt).suffix) is listed


def test_demonstrations_stand_before_the_question_with_their_answers() -> None:
    night = Example("2", " what colour is the night? ", ("black", "white"), 0)
    rendered = render(SKY, "colours", PromptConfig(answer="text"), [night, night])
    shown = "colours: what colour is the night?\nAnswer: black\n\n"
    alone = render(SKY, "colours", PromptConfig(answer="text"))
    assert rendered == alone._replace(prefix=alone.prefix.removesuffix("colours: ") + 2 * shown + "colours: ")


def test_a_demonstration_is_written_as_the_question_and_its_answer_would_be() -> None:
    """So that what follows the last demonstration is what the model has just seen: with letters, their list too."""
    prompt = PromptConfig(answer="letter", instruction=False)
    alone = render(SKY, "colours", prompt)
    written = alone.prefix + alone.input + alone.suffix + alone.continuations[SKY.answer or 0]
    assert render(SKY, "colours", prompt, [SKY]).prefix == f"{written}\n\n{alone.prefix}"
