"""``abmll completion``: a script for a shell, which completes commands, flags and the values of flags.

The script is made of the table of commands and of the verbs' signatures, and knows all words by itself: pressing Tab
starts no Python. Where a word is free, the shell completes names of files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from shlex import quote
from typing import TYPE_CHECKING, Literal, NamedTuple

from abmll.cli.flags import with_common
from abmll.cli.signature import Option, read_signature
from abmll.common.settings import Kind

if TYPE_CHECKING:
    from abmll.cli.main import Command


Words = Callable[[Mapping[str, str]], str]  # some words with their helps, as an action of a shell
HELP, VERSION = (
    Option(name, Kind(bool), f"show {what}", False) for name, what in (("help", "help"), ("version", "the version"))
)


class Place(NamedTuple):
    """What may follow after some words of the command line."""

    path: str  # the words: "", "train", "tasks" or "tasks show"
    is_table: bool  # whether another word of the command follows
    words: Mapping[str, str]  # what may follow that is no flag, with its help; empty: names of files
    flags: Mapping[str, Option]  # every flag that the help shows


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print a script that completes abmll's commands, flags and their values in a shell.

    bash and zsh: put  eval "$(abmll completion bash)"  (or zsh) into ~/.bashrc (or, after compinit, into ~/.zshrc).
    fish: abmll completion fish > ~/.config/fish/completions/abmll.fish

    Args:
        shell: whose script
    """
    from abmll.cli.main import COMMANDS

    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](list(places(COMMANDS))), end="")


def places(commands: "Mapping[str, Command]", path: str = "") -> Iterator[Place]:
    """Every place of a table of commands and of the tables in it, from the top."""
    summaries = {name: command.summary for name, command in commands.items()}
    yield Place(path, True, summaries, _flags((HELP,) if path else (HELP, VERSION)))
    for name, command in commands.items():
        words = f"{path} {name}".strip()
        if isinstance(command.target, str):
            module, _, verb = command.target.partition(":")
            options = with_common(read_signature(getattr(import_module(module), verb)))
            few = {word: option.help for option in options if not option.is_flag for word in option.kind.choices}
            yield Place(words, False, few, _flags(options))
        else:
            yield from places(command.target, words)


def _flags(options: Sequence[Option]) -> dict[str, Option]:
    """The flags of some options; of a switch that is off by default only the one that sets it."""
    shown = [option for option in options if option.is_flag]
    negated = {f"--no-{option.shown[2:]}": replace(option, help=f"not: {option.help}") for option in shown}
    by_flag = {flag: negated.get(flag, option) for option in shown for flag in option.flags}
    return {flag: option for flag, option in by_flag.items() if flag not in negated or option.default is not False}


def bash(found: list[Place]) -> str:
    """The script for bash; an empty answer makes it complete file names (``-o default``)."""
    return f"""\
# Completion of abmll for bash; made by: abmll completion bash
_abmll() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} kind="" at="" words=""
    # readline cuts --flag=value in three
    if [[ $word == "=" ]]; then
        word=""
    elif [[ $before == "=" ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    (( COMP_CWORD > 1 )) && at=${{COMP_WORDS[1]}}
    (( COMP_CWORD > 2 )) && [[ " {_tables(found)} " == *" $at "* ]] && at+=" ${{COMP_WORDS[2]}}"
    [[ $word == -* ]] && kind="-"
    _abmll_words "$at $before" || _abmll_words "$at $kind"
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
_abmll_words() {{
    case "$1" in
{_cases(found, _bash_words, _bash_words, "words=''")}
    *) return 1 ;;
    esac
}}
complete -o bashdefault -o default -F _abmll abmll
"""


def zsh(found: list[Place]) -> str:
    """The script for zsh, which shows the help beside every word."""
    return f"""\
#compdef abmll
# Completion of abmll for zsh; made by: abmll completion zsh
_abmll() {{
    local word=${{words[CURRENT]}} before=${{words[CURRENT-1]}} kind="" at=""
    (( CURRENT > 2 )) && at=${{words[2]}}
    (( CURRENT > 3 )) && [[ " {_tables(found)} " == *" $at "* ]] && at+=" ${{words[3]}}"
    if [[ $word == --*=* ]]; then
        before=${{word%%=*}}
        compset -P '*='
    elif [[ $word == -* ]]; then
        kind="-"
    fi
    _abmll_words "$at $before" || _abmll_words "$at $kind"
}}
_abmll_words() {{
    local -a found
    case "$1" in
{_cases(found, partial(_zsh_words, "command"), partial(_zsh_words, "-o option"), "_files")}
    *) return 1 ;;
    esac
}}
if [[ ${{funcstack[1]}} == _abmll ]]; then
    _abmll "$@"
else
    compdef _abmll abmll
fi
"""


def fish(found: list[Place]) -> str:
    """The script for fish: one line a word, each with the place where it holds."""
    lines = []
    for place in found:
        at = f"complete -c abmll -n '__abmll_at {place.path}'"
        lines += [f"{at} -f -a {word} -d {_fish_quote(text)}" for word, text in place.words.items()]
        for flag, option in place.flags.items():
            values = f" -x -a '{' '.join(option.kind.choices)}'" if option.kind.choices else " -r -F"
            value = "" if option.kind.base is bool else values
            lines.append(f"{at} -l {flag[2:]}{value} -d {_fish_quote(option.help)}")
    return f"""\
# Completion of abmll for fish; made by: abmll completion fish
function __abmll_at
    set -l words (commandline -opc)
    set -l at $words[2]
    if contains -- "$at" {_tables(found)}
        set at "$words[2..3]"
    end
    test "$at" = "$argv"
end
{chr(10).join(lines)}
"""


def _tables(found: list[Place]) -> str:
    """The words after which another word of the command follows."""
    return " ".join(place.path for place in found if place.is_table and place.path)


def _cases(found: list[Place], as_words: Words, as_flags: Words, files: str) -> str:
    """The lines of a ``case`` over "PLACE FLAG" (its values), "PLACE -" (flags) and "PLACE " (anything else)."""
    cases: list[tuple[str, str]] = []
    for place in found:
        valued = {flag: option.kind.choices for flag, option in place.flags.items() if option.kind.base is not bool}
        free = [quote(f"{place.path} {flag}") for flag, choices in valued.items() if not choices]
        few = {flag: as_words(dict.fromkeys(choices, "")) for flag, choices in valued.items() if choices}
        cases += [(quote(f"{place.path} {flag}"), words) for flag, words in few.items()]
        cases += [("|".join(free), files)] if free else []
        flags = {flag: option.help for flag, option in place.flags.items()}
        cases.append((quote(f"{place.path} -"), as_flags(flags)))
        cases.append((quote(f"{place.path} "), as_words(place.words) if place.words else files))
    return "\n".join(f"    {pattern}) {action} ;;" for pattern, action in cases)


def _bash_words(helps: Mapping[str, str]) -> str:
    return f"words={quote(' '.join(helps))}"


def _zsh_words(what: str, helps: Mapping[str, str]) -> str:
    """A colon parts word and help in ``_describe``."""
    rows = [quote(f"{word}:{text}" if text else word) for word, text in helps.items()]
    return f"found=({' '.join(rows)}); _describe {what} found"


def _fish_quote(text: str) -> str:
    """In single quotes, where fish has two escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
