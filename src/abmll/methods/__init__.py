"""Learning rules, one family a file, and the registry that finds them by name.

Not here: files, devices, clocks. The difference between two of these files is the difference between the methods.
Start with ``rule`` (what a rule is), then ``lora`` (the simplest) and ``abmll``.
"""

from typing import Any

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError, nearest
from abmll.language.scorer import OptionScorer
from abmll.methods.abml import Abml
from abmll.methods.abmll import Abmll
from abmll.methods.bayesian_head import AbmllHead, Head, LoraHead, MetaHead
from abmll.methods.blob import Blob
from abmll.methods.compiled import WRITTEN, refuse_uncompiled
from abmll.methods.ensemble import Ensemble
from abmll.methods.icl import AbmllIcl, BatchIcl, Icl, MetaIcl
from abmll.methods.laplace import Laplace
from abmll.methods.linear_probe import LinearProbe, TemperedLinearProbe
from abmll.methods.lora import Pretrained, PretrainedAdapted, RegularLora, StructuredLora
from abmll.methods.loss import OUTER, Loss, read_steps, summarize
from abmll.methods.maml import Fomaml, Maml
from abmll.methods.mc_dropout import McDropout
from abmll.methods.mixture import AbmllMixture
from abmll.methods.reptile import Reptile
from abmll.methods.rule import Rule, State
from abmll.methods.support import Support
from abmll.methods.trained_head import TrainedHead

REGISTRY: dict[str, type[Rule[Any]]] = {
    rule.name: rule
    for rule in (
        *(Abmll, StructuredLora, RegularLora, Reptile, Fomaml, Maml, Abml, Pretrained, PretrainedAdapted),
        *(Icl, BatchIcl, MetaIcl, AbmllIcl),
        AbmllMixture,  # it continues a run of ABMLL
        *(Blob, Laplace, Ensemble, McDropout),  # they continue a run of regular LoRA
        *(LinearProbe, TemperedLinearProbe, Head, MetaHead, TrainedHead, AbmllHead, LoraHead),  # on features
    )
}


def find_rule(name: str) -> type[Rule[Any]]:
    """The rule of that name. Raises ``ConfigError`` with the nearest name for an unknown one."""
    if name not in REGISTRY:
        raise ConfigError(f"method: unknown '{name}';{nearest(name, REGISTRY)} known are {', '.join(REGISTRY)}")
    return REGISTRY[name]


def settings_method(name: str) -> str:
    """The method whose settings and calibration this one takes over: the one it continues, if it is a kind of it.

    Of ``abmll-mixture`` this is ``abmll``; of every other method it is the method itself.
    """
    rule = find_rule(name)
    if rule.base_method is not None and find_rule(rule.base_method) in rule.__mro__:
        return rule.base_method
    return name


def continuing(name: str, own: str) -> type[Rule[Any]]:
    """The rule of that name, which goes on with a run of the method ``own``. Raises ``ConfigError`` if it does not."""
    rule = find_rule(name)
    if own in (name, rule.base_method):
        return rule
    if rule.base_method is not None:
        raise ConfigError(
            f"method: '{name}' continues a run of '{rule.base_method}', and this one is of '{own}'; "
            "train that one first"
        )
    able = [other.name for other in REGISTRY.values() if other.base_method == own]
    others = f"; those that do are {', '.join(able)}" if able else f"; no method continues one of '{own}'"
    raise ConfigError(f"method: '{name}' does not continue another method's run{others}")


def preferred(name: str, space: str) -> str:
    """The method by which users learn unseen tasks from a run of this one, whose adapter is of ``space``.

    A mixture for ABMLL in weight space, where it was measured to be better; otherwise the method itself.
    """
    return AbmllMixture.name if (name, space) == (Abmll.name, "weight") else name


def refuse_written(method: str, is_compiled: bool = False) -> None:
    """Raise ``ConfigError`` where a method, or its compiled steps, cannot learn a task whose answers are written."""
    if is_compiled:
        raise ConfigError(WRITTEN)
    rule = find_rule(method)
    if rule.classifier is not None or rule.demonstrations or rule.needs_options:
        raise ConfigError(
            f"method: '{rule.name}' chooses between options, and this task's answers are written; learn it by gradient "
            "steps, with abmll or another method that takes them (--adapt full)"
        )


def make_rule(scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> Rule[Any]:
    """The rule that ``config.method`` names, for ``num_tasks`` training tasks.

    Raises ``ConfigError`` for an unknown name, an adapter of a space that the rule has no use for, settings that
    contradict it, and steps that are to be compiled and cannot be.
    """
    rule = find_rule(config.method)
    space = scorer.adapter_config.space
    if rule.space not in (None, space):
        raise ConfigError(f"space is '{space}', but {rule.name} needs '{rule.space}'; use space '{rule.space}'")
    if config.gradient_accumulation_steps > 1 and not rule.accumulates:
        raise ConfigError(
            f"gradient_accumulation_steps is {config.gradient_accumulation_steps}, but {rule.name} keeps the graphs of "
            "all steps of an episode, so that parts would save no memory; use 1, or another method, such as fomaml"
        )
    made = rule(scorer, config, num_tasks)
    if scorer.compilation is not None and (rule.classifier is None or rule.is_trained):
        refuse_uncompiled(made)
    return made


__all__ = [
    "OUTER",
    "REGISTRY",
    "Loss",
    "Rule",
    "State",
    "Support",
    "find_rule",
    "make_rule",
    "preferred",
    "read_steps",
    "refuse_written",
    "settings_method",
    "summarize",
]
