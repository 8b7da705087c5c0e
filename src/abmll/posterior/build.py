"""From the adapter's settings to its space."""

from abmll.common.config import AdapterConfig
from abmll.common.errors import ConfigError
from abmll.posterior.bernoulli import DropoutSpace
from abmll.posterior.factor import FactorSpace
from abmll.posterior.output import OutputSpace
from abmll.posterior.space import Space
from abmll.posterior.weight import WeightSpace


def build_space(config: AdapterConfig) -> Space:
    """The space that the settings ask for. Raises ConfigError on a rank, scale or name that cannot be."""
    if config.r < 1:
        raise ConfigError(f"r is {config.r}: give a rank of 1 or more")
    if not config.lora_alpha > 0:
        raise ConfigError(f"lora_alpha is {config.lora_alpha}: give a number above 0")
    scaling = config.lora_alpha / config.r
    if config.space == "weight":
        return WeightSpace(scaling, config.sigma_rank, config.sigma_floor, config.init_log_sigma)
    if config.space == "output":
        return OutputSpace(scaling, config.init_log_sigma)
    if config.space in ("factor", "factor-a"):
        return FactorSpace(scaling, config.init_log_sigma, random_B=config.space == "factor")
    if config.space == "dropout":
        return DropoutSpace(scaling, config.dropout_rate)
    raise ConfigError(f"space is '{config.space}': give 'weight', 'output', 'factor', 'factor-a' or 'dropout'")
