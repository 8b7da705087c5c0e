"""A verb's function signature, read as a list of options.

Parameters before ``*`` are positional arguments, one that is a tuple takes one or more of them; keyword-only parameters
are flags. A parameter annotated with a dataclass of settings gives one flag per field. In the help these stand under
the title of the dataclass that declares them, or with the verb's own options where that dataclass combines several
others. The help of a parameter is its line in the docstring's Args section, or in ``SHARED``. A parameter called
``explicit`` is no flag: it receives the names of the settings that the user set, by flag or file.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from abmll.common.settings import Kind, kind_of, kinds_of

REQUIRED = inspect.Parameter.empty  # The default of an option that has none.
SHORT = {"output": "-o"}
# Parameters that mean the same wherever a docstring says nothing else of them.
SHARED = {
    "column_mapping": "columns under names of their own, each as THEIRS=OURS: sentence=text,category=label",
    "suite": "name or YAML file of a suite",
    "data_dir": "folder in which a suite's tasks are looked up",
    "allow_missing": "go on without tasks of a suite that are not found; the results name them",
    "theta": "where to start: the folder of a training run, or its user/name on a model hub; none: the language model "
    "as it was downloaded; auto: bigbench, which comes with the package, where a head learns on the default model, "
    "unquantised, else none",
    "preset": "default, weights-only, paper-v1 or paper-v3; settings given by flag or file win over it",
    "overwrite": "replace what an earlier command wrote there",
    "quiet": "say nothing but errors",
    "json": "print the result as JSON",
}


@dataclass(frozen=True)
class Option:
    """One thing the user can set: a flag, or one or more positional arguments."""

    name: str
    kind: Kind
    help: str
    default: Any
    is_flag: bool = True
    owner: str | None = None  # The parameter whose dataclass has this option as a field.
    title: str = "options"  # The heading above it in the help.

    @property
    def shown(self) -> str:
        """Its name as the user writes it on the command line."""
        return "--" + self.name.replace("_", "-") if self.is_flag else self.name.upper()

    @property
    def flags(self) -> tuple[str, ...]:
        """Every flag that sets it."""
        if not self.is_flag:
            return ()
        if self.name in SHORT:
            return (self.shown, SHORT[self.name])
        return (self.shown, "--no-" + self.shown[2:]) if self.kind.base is bool else (self.shown,)


@dataclass(frozen=True)
class Signature:
    """A verb's function and what can be set of it; ``groups`` maps parameters to the dataclasses they take."""

    function: Callable[..., int | None]
    summary: str
    options: tuple[Option, ...]
    groups: Mapping[str, type]
    takes_explicit: bool

    def call(self, values: Mapping[str, Any], explicit: frozenset[str]) -> int:
        """Call the function with a value for every option; its exit code (None counts as 0)."""
        own = [option for option in self.options if option.owner is None]
        keywords = {option.name: values[option.name] for option in own} | self.configs(values)
        return self.function(**keywords, **({"explicit": explicit} if self.takes_explicit else {})) or 0

    def configs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The dataclasses made of the values, by parameter; each one checks its own fields."""
        return {
            owner: config(**{name: values[name] for name in kinds_of(config)}) for owner, config in self.groups.items()
        }


def read_signature(function: Callable[..., int | None]) -> Signature:
    """Read a verb's options off its function; KeyError for a parameter that nothing explains."""
    hints = get_type_hints(function)
    summary, own = _docstring(function)
    options: list[Option] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            options += _field_options(name, hints[name])
        elif name != "explicit":
            options.append(_option(parameter, hints[name], SHARED | own))
    return Signature(function, summary, tuple(options), groups, "explicit" in hints)


def _option(parameter: inspect.Parameter, annotation: Any, helps: Mapping[str, str]) -> Option:
    is_flag = parameter.kind is parameter.KEYWORD_ONLY
    more: dict[str, Any] = {"is_flag": is_flag, "title": "options" if is_flag else "arguments"}
    return Option(parameter.name, kind_of(annotation), helps[parameter.name], parameter.default, **more)


def _field_options(owner: str, config: type) -> list[Option]:
    kinds = kinds_of(config)
    return [
        Option(own.name, kinds[own.name], own.metadata["help"], own.default, True, owner, _title(config, own.name))
        for own in fields(config)
    ]


def _title(config: type, field: str) -> str:
    """The first clause of the docstring of the class that declares the field; "options" for a combination of others."""
    declaring = next(kind for kind in config.__mro__ if field in inspect.get_annotations(kind))
    if sum(is_dataclass(base) and fields(base) != () for base in declaring.__bases__) > 1:
        return "options"
    return re.split(r"[;\n]|\.$", declaring.__doc__ or declaring.__name__, maxsplit=1)[0].rstrip(".").replace("`", "")


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before the Args section, and the help of each parameter in it (which may run over several lines)."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section = re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section, flags=re.MULTILINE)
    return text.strip(), {name: " ".join(help.split()) for name, help in found}
