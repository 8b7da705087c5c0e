"""Commands in README and the documentation: what runs elsewhere is not run here, but its words must exist."""

import re
import shlex
from pathlib import Path

import pytest

from abmll.cli.completion import Place, places
from abmll.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
# Entries of these two keep the commands of their day.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in ("log.md", "decisions.md")),
]
PLACES = {place.path: place for place in places(COMMANDS)}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def commands(text: str) -> list[list[str]]:
    """The words of every command in the page's shell blocks, and of ``abmll ...`` between single backquotes."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"(?<!`)`((?:abmll|make) [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [
        shlex.split(line.replace("...", ""), comments=True) for line in [*lines, *inline] if line.count('"') % 2 == 0
    ]


def wrong(words: list[str]) -> str:
    """What a command says that there is not; "" where all is well."""
    if words[:1] == ["make"]:
        return "".join(word for word in words[1:2] if word.isalpha() and word not in TARGETS)
    if words[:1] != ["abmll"] or words[1:2] in ([], ["--version"], ["--help"], ["COMMAND"]):
        return ""
    depth = 2 if words[1] in PLACES and PLACES[words[1]].is_table and len(words) > 2 else 1
    place = PLACES.get(" ".join(words[1 : 1 + depth]))
    if place is None:
        return " ".join(words)
    return " ".join(word for word in words[1 + depth :] if not known(word, place))


def known(word: str, place: Place) -> bool:
    flag = word.partition("=")[0]
    return not flag.startswith("--") or flag in place.flags or flag.replace("--no-", "--") in place.flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    assert [found for words in commands(page.read_text(encoding="utf-8")) if (found := wrong(words))] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("abmll trian x", "abmll trian x"),
        ("abmll train --tasks x --max-step 3", "--max-step"),
        ("abmll tasks shw", "abmll tasks shw"),
        ("abmll train --no-list-options", ""),
        ("make teste", "teste"),
        ("make test", ""),
    ],
)
def test_a_wrong_word_would_be_found(line: str, expected: str) -> None:
    [words] = commands(f"```bash\n{line}\n```\n")
    assert wrong(words) == expected


def test_the_pages_are_not_empty_of_commands() -> None:
    found = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8")) if words[:1] == ["abmll"]]
    assert {words[1] for words in found if len(words) > 1} >= COMMANDS.keys()


def test_blocks_of_python_are_python() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            if not block.startswith("--8<--"):
                compile(block, str(page), "exec")
