"""p(theta): a Gaussian on the means and a Gamma on the precisions (paper, section 3)."""

import math
from dataclasses import astuple, dataclass

from abmll.common.errors import ConfigError


@dataclass(frozen=True)
class Prior:
    """p(theta) = N(mu; 0, std^2) Gamma(1 / sigma^2; gamma_shape, gamma_rate), elementwise.

    The Gamma is a density of the precision 1 / sigma^2; its rate is that of ``torch.distributions.Gamma``.
    Raises ConfigError unless all three are positive.
    """

    std: float
    gamma_shape: float
    gamma_rate: float

    def __post_init__(self) -> None:
        if not all(value > 0 for value in astuple(self)):
            raise ConfigError(f"{self} is no prior: give a number above 0 for each")

    @property
    def gaussian_constant(self) -> float:
        """log(std sqrt(2 pi)): the normaliser of one weight's -log N(mu; 0, std^2)."""
        return math.log(self.std) + 0.5 * math.log(2 * math.pi)

    @property
    def gamma_constant(self) -> float:
        """lgamma(a0) - a0 log b0: the normaliser of one weight's -log Gamma(1 / sigma^2; a0, b0)."""
        return math.lgamma(self.gamma_shape) - self.gamma_shape * math.log(self.gamma_rate)
