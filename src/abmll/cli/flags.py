"""Run a verb: its flags come from its signature, its values from flags, a configuration file, a preset and defaults.

Of these four sources the first that sets an option wins. argparse splits the command line and lays out the help; the
values are read in `abmll.cli.values`, with the same words for flags and files. A usage error is a ConfigError.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from abmll.cli.signature import REQUIRED, Option, Signature, read_signature
from abmll.cli.values import from_texts, from_yaml, to_yaml
from abmll.common.errors import ConfigError, nearest

Fill = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def run_verb(function: Callable[..., int | None], argv: Sequence[str], name: str, fill: Fill | None = None) -> int:
    """Read `argv` as the flags of `function`, call it and return its exit code.

    Args:
        function: the verb; see `abmll.cli.signature` for what its signature and docstring mean.
        argv: the command line after the verb's name.
        name: the verb's name, in help and errors ("train", "tasks show").
        fill: gives values (of a preset) that take effect where the user set none; it gets all values known so far.
    """
    signature = read_signature(function)
    parser = _parser(signature, name)
    given = _split(parser, signature, argv)
    if given.pop("help", False):
        print(parser.format_help(), end="")
        return 0
    from_file = _file_values(signature, given.pop("config", None))
    print_config = given.pop("print_config", False)
    chosen = from_file | _flag_values(signature, given, name)
    values = _with_fill({option.name: option.default for option in signature.options} | chosen, chosen, fill)
    missing = [option for option in signature.options if values[option.name] is REQUIRED]
    if print_config:
        if not missing:
            signature.configs(values)  # Refuses here what the run itself would refuse.
        print(_as_yaml(values), end="")
        return 0
    if missing:
        wanted = ", ".join(option.shown for option in missing)
        raise ConfigError(f"{name}: missing {wanted}; see 'abmll {name} --help'")
    return signature.call(values, frozenset(chosen))


class _Parser(argparse.ArgumentParser):
    """argparse without its own error page: one line, from the one place that prints errors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def _parser(signature: Signature, name: str) -> argparse.ArgumentParser:
    """A parser that keeps texts and leaves out what was not given; conversion and defaults come later."""
    shown = [option for option in signature.options if option.default is REQUIRED or option.form != "flag"]
    usage = " ".join(["abmll", name, *(_usage(option) for option in shown), "[options]"]).replace("%", "%%")
    parser = _Parser(
        name,
        usage=usage,
        description=signature.summary.replace("%", "%%"),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=36),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(map(_heading, signature.options))}
    for option in signature.options:
        _add(groups[_heading(option)], option)
    common = parser.add_argument_group("every command")
    common.add_argument("--config", metavar="FILE.yaml", help="read settings from a file; flags win over it")
    common.add_argument("--print-config", action="store_true", help="print all settings as YAML and stop")
    if all(option.name != "quiet" for option in signature.options):
        common.add_argument("--quiet", action="store_true", help="say less")
    common.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    return parser


def _add(parser: argparse._ActionsContainer, option: Option) -> None:
    help = option.help.replace("%", "%%") + _default_note(option)
    if option.form != "flag":
        nargs = "*" if option.form == "variadic" else "?"
        parser.add_argument(option.name, nargs=nargs, metavar=option.shown, help=help)
    elif option.kind.base is bool and option.default is False:
        # --no-... is there to overrule a file, and needs no line of its own.
        parser.add_argument(option.shown, dest=option.name, action="store_true", help=help)
        parser.add_argument(_negation(option), dest=option.name, action="store_false", help=argparse.SUPPRESS)
    elif option.kind.base is bool:
        parser.add_argument(option.shown, dest=option.name, action=argparse.BooleanOptionalAction, help=help)
    else:
        # Appending keeps every text of a repeated flag; a setting of one value takes the last.
        parser.add_argument(option.shown, dest=option.name, action="append", metavar=option.kind.metavar, help=help)


def _split(parser: argparse.ArgumentParser, signature: Signature, argv: Sequence[str]) -> dict[str, Any]:
    """What stands on the command line, by option; unknown flags and surplus arguments are refused."""
    namespace, extras = parser.parse_known_intermixed_args(_normalised(argv))
    given = vars(namespace)
    if "help" in given:
        return given
    for extra in extras:
        if extra.startswith("-"):
            flag = extra.partition("=")[0]
            hint = nearest(flag, _known_flags(signature)) or f" See 'abmll {parser.prog} --help'."
            raise ConfigError(f"{parser.prog}: unknown flag '{flag}'.{hint}")
        raise ConfigError(f"{parser.prog}: unexpected argument '{extra}'")
    return given


def _normalised(argv: Sequence[str]) -> list[str]:
    """Dashes for underscores in flags; a negative number joined to its flag, since argparse takes -1e-6 for a flag."""
    tokens: list[str] = []
    for index, token in enumerate(argv):
        if token == "--":
            return [*tokens, *argv[index:]]
        if token.startswith("--"):
            flag, equals, value = token.partition("=")
            tokens.append(flag.replace("_", "-") + equals + value)
        elif token.startswith("-") and _is_number(token) and tokens and tokens[-1].startswith("--"):
            tokens[-1] += "=" + token
        else:
            tokens.append(token)
    return tokens


def _flag_values(signature: Signature, given: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = {}
    for option in signature.options:
        if option.name not in given or given[option.name] == []:
            continue
        texts = given[option.name]
        if isinstance(texts, bool):
            values[option.name] = texts
            continue
        try:
            separator = "," if option.form == "flag" else None
            values[option.name] = from_texts(option.kind, [texts] if isinstance(texts, str) else texts, separator)
        except ValueError as error:
            raise ConfigError(f"{name}: {option.shown}: {error}") from error
    return values


def _file_values(signature: Signature, path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    from abmll.cli.settings_file import read_settings

    options = {option.name: option for option in signature.options}
    values = {}
    for key, entry in read_settings(Path(path).expanduser()).items():
        if key not in options:
            raise ConfigError(f"{entry.where}: unknown setting '{key}'.{nearest(key, options)}")
        try:
            values[key] = from_yaml(options[key].kind, entry.value)
        except ValueError as error:
            raise ConfigError(f"{entry.where}: {key}: {error}") from error
    return values


def _with_fill(values: dict[str, Any], chosen: Mapping[str, Any], fill: Fill | None) -> dict[str, Any]:
    if fill is None:
        return values
    known = {name: value for name, value in values.items() if value is not REQUIRED}
    filled = fill(known)
    unknown = filled.keys() - values.keys()
    if unknown:
        raise TypeError(f"filled in settings that the verb does not have: {', '.join(sorted(unknown))}")
    return {**values, **filled, **chosen}


def _as_yaml(values: Mapping[str, Any]) -> str:
    """All settings; one that is still missing becomes a comment, so that the output serves as a form to fill in."""
    from abmll.cli.settings_file import write_settings

    lines = [
        f"# {name}: (required)\n" if value is REQUIRED else write_settings({name: to_yaml(value)})
        for name, value in values.items()
    ]
    return "".join(lines)


def _known_flags(signature: Signature) -> Iterable[str]:
    flags = [option for option in signature.options if option.form == "flag"]
    yield from (option.shown for option in flags)
    yield from (_negation(option) for option in flags if option.kind.base is bool)
    yield from ("--config", "--print-config", "--quiet", "--help")


def _negation(option: Option) -> str:
    return "--no-" + option.shown.removeprefix("--")


def _usage(option: Option) -> str:
    if option.form == "flag":
        return f"{option.shown} {option.kind.metavar}"
    word = option.shown + "..." * (option.form == "variadic")
    return word if option.default is REQUIRED else f"[{word}]"


def _heading(option: Option) -> str:
    """What the option stands under in the help."""
    return "arguments" if option.form != "flag" else (option.title or "options").replace("`", "")


def _default_note(option: Option) -> str:
    if option.default is REQUIRED:
        return " (required)"
    if option.default is None or option.default is False or option.default == ():
        return ""
    default = "on" if option.default is True else option.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f" (default: {shown})".replace("%", "%%")


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
