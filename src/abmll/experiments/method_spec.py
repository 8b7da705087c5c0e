"""What is compared: methods as ``METHOD`` or ``METHOD@PRESET``, seeds, and the settings of each method.

``trained-head@THETA`` reads features with a theta that comes with the package, in place of one of the suite's tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from abmll.common.config import AdapterConfig, ContinuedConfig, EvaluateConfig, ModelConfig, PromptConfig, RunConfig
from abmll.common.documents import MAX_BYTES, read_json
from abmll.common.errors import ConfigError
from abmll.common.files import read_regular
from abmll.common.presets import preset
from abmll.common.settings import flatten, pick, refuse_unknown
from abmll.methods import REGISTRY, find_rule, settings_method
from abmll.methods.trained_head import TrainedHead
from abmll.model.saved_learner import SavedLearner, read_learner
from abmll.model.shipped import shipped_theta

KINDS = (AdapterConfig, PromptConfig, ContinuedConfig, RunConfig, EvaluateConfig)  # a method may have its own values of
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """A method under a preset."""

    method: str
    preset: str = "default"

    @property
    def key(self) -> str:
        """As the user writes it; the preset only where it is not the default."""
        return self.method if self.preset == "default" else f"{self.method}@{self.preset}"

    @property
    def label(self) -> str:
        """What tables call it."""
        label = find_rule(self.method).label
        return label if self.preset == "default" else f"{label} ({self.preset})"

    @property
    def shipped(self) -> SavedLearner | None:
        """The theta that comes with the package and is its own, if one is."""
        folder = shipped_theta(self.preset) if self.method == TrainedHead.name else None
        return None if folder is None else _read(folder)

    @property
    def base(self) -> "Spec | None":
        """The method whose training this one starts from; None where that is its own, or it needs none."""
        method = find_rule(self.method).base_method
        return None if method is None else Spec(method, self.preset)


@dataclass(frozen=True)
class ComparisonConfig:
    """The methods and seeds of a comparison, and what its settings are resolved from.

    Attributes:
        shared: a value for every setting; those that make curves or rows have a tuple of values.
        tuned: by method, what tuning has found (a settings file).
        asked: what the user has set for all methods.
        own: by method, what the user has set for that one.
    """

    specs: Sequence[Spec]
    seeds: Sequence[int]
    shared: Settings
    tuned: Mapping[str, Settings]
    asked: Settings
    own: Mapping[str, Settings]

    def settings_of(self, spec: Spec, suite: Settings) -> dict[str, Any]:
        """Every setting of a method, flat. The last of the layers below that has a setting wins.

        ``suite`` has the suite's prompt and numbers of examples. A method that is a kind of its base method has that
        one's settings, but for what it has of its own.
        """
        keys = dict.fromkeys((Spec(settings_method(spec.method), spec.preset).key, spec.key))
        tuned, own = ([layer.get(key, {}) for key in keys] for layer in (self.tuned, self.own))
        values: dict[str, Any] = {}
        named = preset(spec.preset) if spec.shipped is None else {}
        for layer in (self.shared, suite, named, *tuned, self.asked, *own):
            values.update(layer)
        space = find_rule(spec.method).space
        values |= {"method": spec.method} | ({} if space is None else {"space": space})
        if spec.shipped is not None:
            values |= flatten(pick(AdapterConfig, spec.shipped.document["settings"]))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@cache
def _read(theta: Path) -> SavedLearner:
    return read_learner(theta)


def parse_spec(text: str) -> Spec:
    """One method. Raises ``ConfigError`` with the nearest name for an unknown method or preset."""
    method, _, name = text.partition("@")
    spec = Spec(method, name or "default")
    find_rule(spec.method)
    if spec.shipped is None:
        preset(spec.preset)
    return spec


def parse_specs(texts: Sequence[str]) -> list[Spec]:
    """The methods that the user names; ``all`` is every method of the registry.

    Raises ``ConfigError`` with the nearest name for an unknown method or preset, and for one named twice.
    """
    specs: list[Spec] = []
    for text in texts:
        specs += map(Spec, REGISTRY) if text == "all" else [parse_spec(text)]
    for spec in specs:
        if specs.count(spec) > 1:
            raise ConfigError(f"methods: '{spec.key}' is named twice; remove one")
    return specs


def defaults() -> dict[str, Any]:
    """The default of every setting of the frozen model and of a method."""
    return {field.name: field.default for kind in (ModelConfig, *KINDS) for field in fields(kind)}


def read_settings_file(path: Path) -> dict[str, dict[str, Any]]:
    """Settings by method, as ``abmll tune`` writes them.

    Raises ``ConfigError`` where the file is missing, of another format, or has a setting that no method knows.
    """
    remedy = "name a file that 'abmll tune' wrote"
    data = read_regular(path, MAX_BYTES, remedy, ConfigError)  # here already, as a user may name a link
    methods = read_json(path, "settings", remedy, ConfigError, data).get("methods") or {}
    for key, values in methods.items():
        parse_specs([key])
        refuse_unknown(KINDS, values, f"{path}: {key}")
    return methods
