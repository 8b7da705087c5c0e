"""Run a verb: its flags come from its signature, its values from flags, a configuration file, a preset and defaults.

Of these four sources the first that sets an option wins. A ``Kind`` reads the values, in the same words for flags and
files. A usage error is a ConfigError.
"""

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from abmll.cli.settings_file import read_settings, write_settings
from abmll.cli.signature import REQUIRED, Option, Signature, read_signature
from abmll.common.errors import ConfigError, nearest
from abmll.common.settings import Kind

Fill = Callable[[Mapping[str, Any]], Mapping[str, Any]]
COMMON = tuple(
    Option(name, kind, help, default, title="every command")
    for name, kind, default, help in (
        (
            "config",
            Kind(Path, optional=True),
            None,
            "read settings from a YAML file, or from a recipe by its name; flags win over it",
        ),
        ("print_config", Kind(bool), False, "print all settings as YAML and stop"),
        ("quiet", Kind(bool), False, "say less"),
        ("help", Kind(bool), False, "show this help and stop"),
    )
)
_METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
_MARGIN = 36  # the column of the help texts


def run_verb(function: Callable[..., int | None], argv: Sequence[str], name: str, fill: Fill | None = None) -> int:
    """Read ``argv`` as the flags of ``function``, call it and return its exit code.

    Args:
        function: the verb; see ``abmll.cli.signature`` for what its signature and docstring mean.
        argv: the command line after the verb's name.
        name: the verb's name, in help and errors ("train", "tasks show").
        fill: gives values (of a preset) that take effect where the user set none; it gets all values known so far.
    """
    signature = read_signature(function)
    names, options = {option.name for option in signature.options}, with_common(signature)
    if {"-h", "--help"} & {*argv}:
        print(_help(signature, options, name))
        return 0
    given = _read(options, _split(options, argv, name), name)
    kinds = {option.name: option.kind for option in signature.options}
    from_file = read_settings(given["config"], kinds) if given.get("config") else {}
    chosen = from_file | {key: value for key, value in given.items() if key in names}
    values = {option.name: option.default for option in signature.options} | chosen
    if fill is not None:
        values |= {**fill({key: value for key, value in values.items() if value is not REQUIRED}), **chosen}
    missing = [option for option in signature.options if values[option.name] is REQUIRED]
    if given.get("print_config"):
        if not missing:
            signature.configs(values)  # Refuses here what the run itself would refuse.
        print(_as_yaml(values), end="")
        return 0
    if missing:
        wanted = ", ".join(option.shown for option in missing)
        raise ConfigError(f"{name}: missing {wanted}; see 'abmll {name} --help'")
    return signature.call(values, frozenset(chosen))


def with_common(signature: Signature) -> tuple[Option, ...]:
    """The options of a verb and, where it has none of that name, those of every command."""
    names = {option.name for option in signature.options}
    return signature.options + tuple(option for option in COMMON if option.name not in names)


def _split(options: Sequence[Option], argv: Sequence[str], name: str) -> dict[str, list[str]]:
    """The texts on the command line by option; a switch has "true" or "false".

    Raises ``ConfigError`` for unknown flags, surplus arguments, and what is named twice and takes one value.
    """
    known = {flag: option for option in options for flag in option.flags}
    given: dict[str, list[str]] = {}
    rest: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        flag, equals, text = token.partition("=")
        flag = flag.replace("_", "-")
        if token == "--":
            rest += tokens
        elif not token.startswith("-") or token == "-":
            rest.append(token)
        elif flag not in known:
            hint = nearest(flag, known) or f" See 'abmll {name} --help'."
            raise ConfigError(f"{name}: unknown flag '{flag}'.{hint}")
        else:
            if known[flag].kind.base is bool:
                wrong, text = equals, "false" if flag in known[flag].flags[1:] else "true"
            else:
                text = text if equals else next(tokens, "--")
                wrong = not equals and text.startswith("--")
            if wrong:
                raise ConfigError(f"{name}: {flag} takes {'no' if equals else 'a'} value")
            option = known[flag]
            # A later flag overrules a default, and so an earlier flag; of what has none, the earlier would be lost.
            if option.name in given and not option.kind.many and option.default in (REQUIRED, None):
                raise ConfigError(f"{name}: {option.shown} is given twice, but takes one value; keep one")
            given.setdefault(option.name, []).append(text)
    for option in options:
        if not option.is_flag and rest:
            count = len(rest) if option.kind.many else 1
            given[option.name], rest = rest[:count], rest[count:]
    if rest:
        raise ConfigError(f"{name}: unexpected argument '{rest[0]}'")
    return given


def _read(options: Sequence[Option], given: Mapping[str, Sequence[str]], name: str) -> dict[str, Any]:
    """The values that the texts stand for; ``ConfigError`` names the flag of one that is of another kind."""
    values = {}
    for option in options:
        if option.name in given:
            separator = "," if option.is_flag else None
            try:
                values[option.name] = option.kind.read(given[option.name], separator)
            except ValueError as error:
                raise ConfigError(f"{name}: {option.shown} {error}") from error
    return values


def _as_yaml(values: Mapping[str, Any]) -> str:
    """All settings; one that is still missing becomes a comment, so that the output serves as a form to fill in."""
    return "".join(
        f"# {name}: (required)\n" if value is REQUIRED else write_settings({name: value})
        for name, value in values.items()
    )


def _help(signature: Signature, options: Sequence[Option], name: str) -> str:
    shown = [_usage(option) for option in options if option.default is REQUIRED or not option.is_flag]
    lines = [" ".join(["usage: abmll", name, *shown, "[options]"]), "", signature.summary]
    width = max(shutil.get_terminal_size().columns - _MARGIN, 30)
    for title in dict.fromkeys(option.title for option in options):
        lines += ["", f"{title}:"]
        for option in options:
            if option.title == title:
                left = f"  {_left(option)}".ljust(_MARGIN - 1)
                texts = textwrap.wrap(option.help + _default_note(option), width, break_on_hyphens=False)
                lines.append(left if len(left) >= _MARGIN else f"{left} {texts.pop(0)}")
                lines += [" " * _MARGIN + text for text in texts]
    return "\n".join(lines)


def _left(option: Option) -> str:
    """The option as it stands in the help, before its help text."""
    if not option.is_flag:
        return option.shown
    if option.kind.base is bool:
        # --no-... of a switch that is off by default is there to overrule a file, and needs no line of its own.
        return option.shown if option.default is False else ", ".join(option.flags)
    one = "{" + ",".join(option.kind.choices) + "}" if option.kind.choices else _METAVARS[option.kind.base]
    return f"{', '.join(option.flags)} {one}" + ",..." * option.kind.many


def _usage(option: Option) -> str:
    if option.is_flag:
        return _left(option)
    word = option.shown + "..." * option.kind.many
    return word if option.default is REQUIRED else f"[{word}]"


def _default_note(option: Option) -> str:
    if option.default is REQUIRED:
        return " (required)"
    if option.default is None or option.default is False or option.default == ():
        return ""
    default = "on" if option.default is True else option.default
    return f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
