"""Learning rules, one a file, and the registry that finds them by name."""

from abmll.config import LearningConfig
from abmll.errors import ConfigError, nearest
from abmll.language.scorer import OptionScorer
from abmll.methods.abmll import Abmll
from abmll.methods.lora import Pretrained, RegularLora, StructuredLora
from abmll.methods.loss import Loss, Reading, read_steps
from abmll.methods.rule import Rule, State

REGISTRY: dict[str, type[Rule]] = {rule.name: rule for rule in (Abmll, StructuredLora, RegularLora, Pretrained)}


def find_rule(name: str) -> type[Rule]:
    """The rule of that name. Raises ``ConfigError`` with the nearest name for an unknown one."""
    if name not in REGISTRY:
        raise ConfigError(f"method: unknown '{name}';{nearest(name, REGISTRY)} known are {', '.join(REGISTRY)}")
    return REGISTRY[name]


def make_rule(scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> Rule:
    """The rule that ``config.method`` names, for ``num_tasks`` training tasks."""
    rule: type = find_rule(config.method)
    return rule(scorer, config, num_tasks)


__all__ = ["REGISTRY", "Loss", "Reading", "Rule", "State", "find_rule", "make_rule", "read_steps"]
