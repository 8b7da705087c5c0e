"""The card of a run and of a posterior: names of others are text in it, and its front matter is YAML's."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from abmll.model.card import posterior_card, run_card

HASH = "sha256:" + "1" * 64
HOSTILE = ["](javascript:alert(1))", "<script>alert(1)</script>", "a\n---\nlicense: mit\n# b", "`x` {name} ${y}", ": a"]
READER: Any = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def posterior(**changes: Any) -> dict[str, Any]:
    settings = {"model": "org/base", "method": "abmll", "adapt_examples": 20}
    document = {"task_name": "toy", "labels": ["bug", "praise"], "base_fingerprint": HASH, "settings": settings}
    return document | {"measured": {"accuracy": 0.5}} | changes


def parts(card: str) -> tuple[dict[str, Any], list[Any]]:
    """The front matter, and the tokens of the rest."""
    start, front, rest = re.split("^---\n", card, maxsplit=2, flags=re.MULTILINE)
    assert start == ""
    return yaml.safe_load(front), READER.parse(rest)


def kinds(tokens: list[Any]) -> set[str]:
    return {token.type for token in tokens} | {inner.type for token in tokens for inner in token.children or []}


def texts(tokens: list[Any]) -> str:
    return "".join(inner.content for token in tokens for inner in token.children or [])


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_others_are_text(name: str) -> None:
    usual = parts(posterior_card(posterior(), "out"))
    front, tokens = parts(posterior_card(posterior(task_name=name, labels=[name, "b"]), "out"))
    assert kinds(tokens) == kinds(usual[1])
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1"]
    shown = " ".join(name.split("\n"))
    assert texts(tokens).startswith(shown)
    assert front.keys() == usual[0].keys()
    results = front["model-index"][0]["results"][0]
    assert results["dataset"]["name"] == shown

    settings = posterior()["settings"] | {"method": "abmll"}
    usual = parts(run_card("out", settings, HASH, ["toy"], 3, []))
    front, tokens = parts(run_card("out", settings, HASH, [name], 3, []))
    assert (kinds(tokens), front) == (kinds(usual[1]), usual[0])
    assert shown in texts(tokens)


def test_the_fingerprint_is_shown_in_short(tmp_path: Path) -> None:
    assert "org/base (sha256:111111111111...)" in posterior_card(posterior(), "out")
    old = posterior(base_fingerprint="2" * 64)
    assert f"org/base ({'2' * 19}...)" in posterior_card(old, "out")


def test_a_task_whose_answers_are_written() -> None:
    document = posterior(labels=[], measured={})
    document["settings"] = document["settings"] | {"written": True}
    card = posterior_card(document, 'my "folder"')
    front, tokens = parts(card)
    assert "text-generation" in front["tags"]
    assert "Labels" not in card
    [_, snippet] = [token.content for token in tokens if token.type == "code_block"]
    compile(snippet, "card", "exec")
    assert 'from_pretrained("my \\"folder\\"")' in snippet
    assert ".generate([" in snippet
