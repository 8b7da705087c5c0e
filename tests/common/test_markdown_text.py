"""A name in Markdown is read as the text that it is, by a reader of CommonMark with tables and strikethrough."""

from html import escape
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from abmll.common.errors import one_line
from abmll.common.markdown_text import as_text, block, span

READER: Any = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "<https://example.org>",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\n# b\n---\nlicense: mit",
    "a\r\n\r\n    code",
    "`a` ``b`` *c* _d_ ~~e~~ __f__ **g**",
    "&lt;b&gt; &#60; &copy;",
    "| a | b |",
    "\\",
    "\\[",
    "sst_2, C#, {name}, a_, _b",
    "\u202e\x1b[31m",
]
TEXTS = st.text(st.sampled_from("\\`*_[]()<>&|~$#!-+=:;'\"/ab1 \n\t\r")) | st.text()


def same_text(text: str) -> None:
    shown = escape(one_line(text), quote=False).replace('"', "&quot;")
    assert READER.render(f"x {as_text(text)} x") == f"<p>x {shown} x</p>\n"
    assert READER.render(f"# x {as_text(text)} x") == f"<h1>x {shown} x</h1>\n"
    if text.strip():
        assert READER.render(f"x {span(text)} x") == f"<p>x <code>{shown}</code> x</p>\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_text(text: str) -> None:
    same_text(text)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_any_name_is_text(text: str) -> None:
    same_text(text)


@pytest.mark.parametrize("text", ["sst_2", "movie_dialog.same-or-different (2)", "cls-45", "tasks/toy.jsonl"])
def test_a_usual_name_stays_as_it_is(text: str) -> None:
    assert as_text(text) == text


def test_a_block_has_what_it_is_given() -> None:
    [token] = READER.parse(block("```\n<b>\n````\n", "text"))
    assert (token.type, token.content) == ("fence", "```\n<b>\n````\n\n")
