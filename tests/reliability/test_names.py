"""Names that nobody meant: in the card of what learned the task they are text, and its front matter stays YAML."""

import os
import re
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from abmll.common.errors import one_line
from abmll.model.card import posterior_card, run_card

SEED = int(os.environ.get("ABMLL_SEED", "0"))
READER: Any = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = [
    "](javascript:alert(1))",
    "<script>",
    "</h1>",
    "\n---\n",
    "\n# ",
    "```",
    "`",
    "**",
    "_",
    "~~",
    "|",
    "&lt;",
    "![",
    "a",
]
NAMES = st.text(min_size=1) | st.lists(st.sampled_from(PIECES), min_size=1).map("".join)
HASH = "sha256:" + "1" * 64
SETTINGS = {"model": "org/base", "method": "abmll", "adapt_examples": 20}


def posterior(name: str) -> str:
    document = {"task_name": name, "labels": [name, "b"], "base_fingerprint": HASH, "settings": SETTINGS}
    return posterior_card({**document, "measured": {"accuracy": 0.5}}, "out")


def run(name: str) -> str:
    return run_card("out", SETTINGS, HASH, [name, "b"], 2, [])


def parts(card: str) -> tuple[dict[str, Any], list[str]]:
    """The front matter, and the kinds of what follows it."""
    _, front, rest = re.split("^---\n", card, maxsplit=2, flags=re.MULTILINE)
    tokens = [inner for token in READER.parse(rest) for inner in (token, *(token.children or []))]
    kinds = [token.type for token in tokens if token.type not in ("text", "text_special")]
    return yaml.safe_load(front), kinds


def test_any_name_in_a_card(tries: Callable[[int], int]) -> None:
    usual = {card: parts(card("a")) for card in (posterior, run)}

    @seed(SEED)
    @settings(max_examples=tries(300))
    @given(NAMES)
    def check(name: str) -> None:
        for card, (front, kinds) in usual.items():
            found = parts(card(name))
            assert (found[0].keys(), found[1]) == (front.keys(), kinds)
        [result] = parts(posterior(name))[0]["model-index"][0]["results"]
        assert result["dataset"]["name"] == one_line(name)

    check()
