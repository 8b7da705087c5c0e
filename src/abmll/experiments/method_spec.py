"""Which methods are compared: ``METHOD`` or ``METHOD@PRESET``, and the settings of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from abmll.common.config import AdapterConfig, ContinuedConfig, EvaluateConfig, ModelConfig, PromptConfig, RunConfig
from abmll.common.errors import ConfigError
from abmll.common.presets import preset
from abmll.common.settings import refuse_unknown
from abmll.methods import REGISTRY, find_rule, settings_method

KINDS = (AdapterConfig, PromptConfig, ContinuedConfig, RunConfig, EvaluateConfig)  # a method may have its own values of
SETTINGS_FORMAT = "abmll-settings-2"


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


def parse_specs(texts: Sequence[str]) -> list[Spec]:
    """The methods that the user names; ``all`` is every method of the registry.

    Raises ``ConfigError`` with the nearest name for an unknown method or preset, and for one named twice.
    """
    specs: list[Spec] = []
    for text in texts:
        method, _, name = text.partition("@")
        chosen = [Spec(known) for known in REGISTRY] if text == "all" else [Spec(method, name or "default")]
        for spec in chosen:
            find_rule(spec.method)
            preset(spec.preset)
        specs += chosen
    for spec in specs:
        if specs.count(spec) > 1:
            raise ConfigError(f"methods: '{spec.key}' is named twice; remove one")
    return specs


def resolve(
    spec: Spec,
    shared: Mapping[str, Any],
    suite: Mapping[str, Any],
    tuned: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Every setting of a method, flat. The last of these that has a setting wins.

    A method that is a kind of the one it continues has that one's settings but for what it has of its own.

    Args:
        shared: a value for every setting.
        suite: the suite's prompt and numbers of examples.
        tuned: by method, what tuning has found (a settings file).
        asked: what the user has set for all methods.
        own: by method, what the user has set for that one.
    """
    rule = find_rule(spec.method)
    keys = dict.fromkeys((Spec(settings_method(spec.method), spec.preset).key, spec.key))
    values = dict(shared)
    layers = (
        suite,
        preset(spec.preset),
        *(tuned.get(key, {}) for key in keys),
        asked,
        *(own.get(key, {}) for key in keys),
    )
    for layer in layers:
        values.update(layer)
    for key, value in (("method", spec.method), ("space", rule.space)):
        if value is not None:
            values[key] = value
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def defaults() -> dict[str, Any]:
    """The default of every setting that ``resolve`` gives a value."""
    return {field.name: field.default for kind in (ModelConfig, *KINDS) for field in fields(kind)}


def read_settings_file(path: Path) -> dict[str, dict[str, Any]]:
    """Settings by method, as ``abmll tune`` writes them.

    Raises ``ConfigError`` where the file is missing, of another format, or has a setting that no method knows.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a file that 'abmll tune' wrote") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); write it again") from error
    if not isinstance(content, dict) or content.get("format") != SETTINGS_FORMAT:
        raise ConfigError(f"{path}: not a settings file ('format' must be '{SETTINGS_FORMAT}'); see 'abmll tune'")
    methods = content.get("methods") or {}
    for key, values in methods.items():
        parse_specs([key])
        refuse_unknown(KINDS, values, f"{path}: {key}")
    return methods
