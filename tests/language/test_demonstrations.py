"""Prompts with demonstrations in tokens: all that fit are there, the rest is counted, the question stays whole."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from abmll.common.config import PromptConfig
from abmll.language.encoding import Encoder
from abmll.tasks import Example

SHORT = PromptConfig(instruction=False, answer="text")
SHOWN = [Example(str(n), f"shown {n}", ("yes", "no"), 0) for n in range(3)]
ASKED = [Example("a", "short", ("yes", "no"), 1), Example("b", "much longer than that", ("yes", "no"), 0)]


@pytest.fixture
def encoder(tiny_llama: Path) -> Encoder:
    """One token a character."""
    return Encoder(AutoTokenizer.from_pretrained(tiny_llama), SHORT, context=256)


def text_of(encoder: Encoder, tokens: tuple[int, ...]) -> str:
    text = encoder.tokenizer.decode(list(tokens))
    assert isinstance(text, str)
    return text


def test_all_of_them_come_first_where_there_is_room(encoder: Encoder) -> None:
    encoded, dropped = encoder.encode_demonstrated(ASKED, "t", SHOWN)
    before = "".join(f"t: shown {n}\nAnswer: yes\n\n" for n in range(3))
    assert dropped == 0
    assert [text_of(encoder, one.prompt) for one in encoded] == [f"{before}t: {one.input}\nAnswer:" for one in ASKED]
    assert [one.options for one in encoded] == [one.options for one in encoder.encode_all(ASKED, "t")]
    assert [one.answer for one in encoded] == [1, 0]


def test_without_any_it_is_the_question_alone(encoder: Encoder) -> None:
    assert encoder.encode_demonstrated(ASKED, "t", []) == (list(encoder.encode_all(ASKED, "t")), 0)


def test_the_last_ones_are_left_out_where_the_example_would_not_fit(tiny_llama: Path) -> None:
    whole = Encoder(AutoTokenizer.from_pretrained(tiny_llama), SHORT, context=256)
    [short, _], _ = whole.encode_demonstrated(ASKED, "t", SHOWN)
    cramped = Encoder(whole.tokenizer, SHORT, context=len(short))
    encoded, dropped = cramped.encode_demonstrated(ASKED, "t", SHOWN)
    assert encoded[0] == short
    assert text_of(whole, encoded[1].prompt).count("shown") == 2
    assert "much longer than that" in text_of(whole, encoded[1].prompt)
    assert dropped == 1


def test_an_example_that_is_too_long_by_itself_is_cut(tiny_llama: Path) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_llama), SHORT, context=40)
    long = Example("c", "word " * 30, ("yes", "no"), 0)
    [encoded], dropped = encoder.encode_demonstrated([long], "t", SHOWN)
    assert dropped == 3
    assert encoded == encoder.encode(long, "t")
    assert encoded.truncated > 0
