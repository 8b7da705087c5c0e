"""From the adapter's settings to its space."""

from abmll.common.config import AdapterConfig
from abmll.posterior.bernoulli import DropoutSpace
from abmll.posterior.factor import FactorSpace
from abmll.posterior.output import OutputSpace
from abmll.posterior.space import Space
from abmll.posterior.weight import WeightSpace


def build_space(config: AdapterConfig) -> Space:
    """The space that the settings ask for. Raises ConfigError for a dropout rate of 1 or more."""
    scaling = config.lora_alpha / config.r
    if config.space == "weight":
        return WeightSpace(scaling, config.sigma_rank, config.sigma_floor, config.init_log_sigma)
    if config.space == "output":
        return OutputSpace(scaling, config.init_log_sigma)
    if config.space == "dropout":
        return DropoutSpace(scaling, config.dropout_rate)
    return FactorSpace(scaling, config.init_log_sigma, random_B=config.space == "factor")
