"""A verb's function signature, read as a list of options.

Parameters before ``*`` are positional arguments, ``*files`` takes one or more of them, keyword-only parameters are
flags. A parameter annotated with a frozen dataclass gives one flag per field. In the help these stand under the title
of the dataclass that declares them, or with the verb's own options where that dataclass combines several others. The
help of a field is its metadata's "help", that of a parameter its line in the docstring's Args section. A parameter
called `explicit` is no flag: it receives the names of the settings that the user set, by flag or file.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from abmll.cli.values import Kind, kind_of

REQUIRED = inspect.Parameter.empty  # The default of an option that has none.


@dataclass(frozen=True)
class Option:
    """One thing the user can set: a flag, a positional argument, or the rest of the positional arguments."""

    name: str
    kind: Kind
    help: str
    default: Any
    form: Literal["flag", "positional", "variadic"] = "flag"
    owner: str | None = None  # The parameter whose dataclass has this option as a field.
    title: str | None = None  # The heading above it in the help; None: with the verb's own options.

    @property
    def shown(self) -> str:
        """Its name as the user writes it on the command line."""
        return "--" + self.name.replace("_", "-") if self.form == "flag" else self.name.upper()


@dataclass(frozen=True)
class Signature:
    """A verb's function and what can be set of it; `groups` maps parameters to the dataclasses they take."""

    function: Callable[..., int | None]
    summary: str
    options: tuple[Option, ...]
    groups: Mapping[str, type]
    takes_explicit: bool

    def call(self, values: Mapping[str, Any], explicit: frozenset[str]) -> int:
        """Call the function with a value for every option; its exit code (None counts as 0)."""
        positional = [values[option.name] for option in self.options if option.form == "positional"]
        rest = [value for option in self.options if option.form == "variadic" for value in values[option.name]]
        keywords = {option.name: values[option.name] for option in self.options if _is_keyword(option)}
        keywords |= self.configs(values)
        if self.takes_explicit:
            keywords["explicit"] = explicit
        return self.function(*positional, *rest, **keywords) or 0

    def configs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The dataclasses made of the values, by parameter; each one checks its own fields."""
        return {
            owner: config(**{option.name: values[option.name] for option in self.options if option.owner == owner})
            for owner, config in self.groups.items()
        }


def read_signature(function: Callable[..., int | None]) -> Signature:
    """Read a verb's options off its function; TypeError for a signature that cannot be a command line."""
    hints = get_type_hints(function)
    summary, helps = _docstring(function)
    options: list[Option] = []
    groups: dict[str, type] = {}
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        annotation = hints[parameter.name]
        if parameter.name == "explicit":
            continue
        if is_dataclass(annotation) and isinstance(annotation, type):
            groups[parameter.name] = annotation
            options += _field_options(parameter, annotation)
        else:
            options.append(_option(parameter, annotation, helps))
    names = [option.name for option in options]
    repeated = sorted({name for name in names if names.count(name) > 1} | {"config", "print_config", "help"} & {*names})
    if repeated:
        raise TypeError(f"{function.__qualname__}: names taken twice: {', '.join(repeated)}")
    return Signature(function, summary, tuple(options), groups, "explicit" in parameters)


def _option(parameter: inspect.Parameter, annotation: Any, helps: Mapping[str, str]) -> Option:
    if parameter.name not in helps:
        raise TypeError(f"parameter '{parameter.name}' has no line in the docstring's Args section")
    kind, default = kind_of(annotation), parameter.default
    if parameter.kind is parameter.VAR_POSITIONAL:
        kind = Kind(kind.base, many=True)
        return Option(parameter.name, kind, helps[parameter.name], default, "variadic")
    form = "flag" if parameter.kind is parameter.KEYWORD_ONLY else "positional"
    return Option(parameter.name, kind, helps[parameter.name], default, form)


def _field_options(parameter: inspect.Parameter, config: type) -> list[Option]:
    """One flag per field; a dataclass instance as the parameter's default gives the fields' defaults."""
    hints = get_type_hints(config)
    options = []
    for field in fields(config):
        default = REQUIRED if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if parameter.default is not parameter.empty:
            default = getattr(parameter.default, field.name)
        help = field.metadata["help"]
        title = _title(config, field.name)
        options.append(Option(field.name, kind_of(hints[field.name]), help, default, owner=parameter.name, title=title))
    return options


def _title(config: type, field: str) -> str | None:
    """The first clause of the docstring of the class that declares the field; None for a combination of others."""
    declaring = next(kind for kind in config.__mro__ if field in inspect.get_annotations(kind))
    if sum(is_dataclass(base) and fields(base) != () for base in declaring.__bases__) > 1:
        return None
    return re.split(r"[;\n]|\.$", declaring.__doc__ or declaring.__name__, maxsplit=1)[0].rstrip(".")


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before the Args section, and the help of each parameter in it (which may run over several lines)."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section = re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^    \*?(\w+): (.*(?:\n     +.*)*)", section, flags=re.MULTILINE)
    return text.strip(), {name: " ".join(help.split()) for name, help in found}


def _is_keyword(option: Option) -> bool:
    return option.form == "flag" and option.owner is None
