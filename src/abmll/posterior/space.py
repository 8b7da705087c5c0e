"""What every Gaussian adapter space offers, and the two small records that its functions take."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from abmll.errors import ConfigError
from abmll.posterior.factors import Factors


@dataclass(frozen=True)
class Noise:
    """How a forward pass samples the posterior.

    ``shared`` draws one weight sample per example, shared by all its tokens; ``local`` draws every token's output
    independently: the same marginals per token, less gradient variance. The generator must live on the inputs' device.
    """

    kind: Literal["local", "shared"]
    generator: torch.Generator
    mask: Tensor | None = None  # (N, T) bool, False on padding; None: no padding


@dataclass(frozen=True)
class Prior:
    """p(theta) = N(mu; 0, std^2) Gamma(1 / sigma^2; gamma_shape, gamma_rate), elementwise (paper, section 3).

    The Gamma is a density of the precision 1 / sigma^2; its rate is that of ``torch.distributions.Gamma``.
    Raises ConfigError unless all three are positive.
    """

    std: float
    gamma_shape: float
    gamma_rate: float

    def __post_init__(self) -> None:
        for name in ("std", "gamma_shape", "gamma_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"the prior's {name} is {getattr(self, name)}: give a number above 0")


class Space(Protocol):
    """A family of Gaussian LoRA adapters: initialisation, sampling, KL and prior of a stack of layers.

    All arithmetic is in the factors' dtype (float32, or float64 in tests); inputs are cast to it, results stay in it.
    Functions over a stack take Factors with a leading L; functions of one layer take an element of ``unbind()``.
    """

    @property
    def per_activation(self) -> bool:
        """False: KL and prior follow from the factors alone. True: they need the layer's input."""
        ...

    @property
    def scaling(self) -> float:
        """s = lora_alpha / r of the mean update s B A."""
        ...

    def scale_rank(self, r: int) -> int:
        """k, the rank of the scale factors, for mean factors of rank r."""
        ...

    def init(self, num_layers: int, d_out: int, d_in: int, r: int, generator: torch.Generator) -> Factors:
        """Fresh float32 factors of L layers on the generator's device; the mean update starts at zero."""
        ...

    def delta(self, layer: Factors, x: Tensor, noise: Noise | None) -> Tensor:
        """(N, T, d_in) -> (N, T, d_out): the adapter's contribution; at the posterior mean when noise is None."""
        ...

    def kl(self, phi: Factors, theta: Factors) -> Tensor:
        """KL(q(phi) || p(phi | theta)) in nats, a scalar summed over all layers.

        Raises NotImplementedError if per_activation.
        """
        ...

    def negative_log_prior(self, theta: Factors, prior: Prior) -> Tensor:
        """-log p(theta) in nats with its normalisers, a scalar summed over all layers.

        Raises NotImplementedError if per_activation.
        """
        ...

    def activation_kl(self, phi_layer: Factors, theta_layer: Factors, x: Tensor, mask: Tensor) -> Tensor:
        """KL of one layer's output given its input x (N, T, d_in), summed over the tokens in mask (N, T) and channels.

        Raises NotImplementedError unless per_activation.
        """
        ...

    def activation_negative_log_prior(self, theta_layer: Factors, prior: Prior, x: Tensor, mask: Tensor) -> Tensor:
        """-log p(theta) of one layer's output given its input x, summed over the tokens in mask and channels.

        Raises NotImplementedError unless per_activation.
        """
        ...

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        """A scalar to watch, outside the gradient graph: the mean log standard deviation over all layers.

        In output space it is half the log variance at input zero.
        """
        ...
