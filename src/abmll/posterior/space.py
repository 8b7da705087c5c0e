"""What every Gaussian adapter space offers, and the two small records that its functions take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.stacks import Factors


@dataclass(frozen=True)
class Noise:
    """How a forward pass samples the posterior.

    ``shared`` draws one weight sample, the same for all tokens of a row; ``local`` draws every token's output
    independently: the same marginals per token, less gradient variance. The generator must live on the inputs' device.

    ``rank`` 0 draws either exactly. With rank m the noise of a layer's output lies in m random directions: exactly
    normal at every token, with the right variance, from m numbers a token and channel instead of one for each pair.
    Two tokens' noise is then uncorrelated on average (``local``), or correlated as their images in m random directions
    are (``shared``), which nears the weight sample's correlation as m grows.
    """

    kind: Literal["local", "shared"]
    generator: torch.Generator
    mask: Tensor | None = None  # (R, L) bool, False on padding; None: no padding
    rank: int = 0


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


@dataclass(frozen=True)
class LowRank:
    """(..., d_in) -> (..., d_out): left right x, for left (d_out, r) and right (r, d_in), in the factors' dtype."""

    left: Tensor
    right: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.right.dtype), self.right), self.left)


# x (R, L, d_in) -> (R, L, d_out): what an adapter adds to a layer's output
LayerUpdate = Callable[[Tensor], Tensor]


class Recorder(Protocol):
    """A layer's update in two steps, so that a divergence can start from what the first one leaves."""

    def coefficients(self, x: Tensor) -> Tensor:
        """(R, L, d_in) -> (R, L, c): all that the layer's Gaussians need of its input."""
        ...

    def update(self, coefficients: Tensor) -> Tensor:
        """(R, L, c) -> (R, L, d_out)."""
        ...


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

    def layers(self, factors: Factors, noise: Noise | None) -> list[LayerUpdate]:
        """The contributions of a stack's L layers; at the posterior mean when noise is None.

        What does not depend on the layer's input is computed, and drawn, here and for the whole stack at once. A weight
        sample of ``noise.rank`` above 0 is drawn here entirely: every input then meets the same function.
        """
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

    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """Covariance (N, D, D) of the functions sum_t gradients_t . y_t of one layer's noisy outputs y.

        x (N, T, d_in) are the layer's inputs and ``gradients`` (N, D, T, d_out) those of D functions of each of N
        examples; both are zero on padding.
        """
        ...

    def log_sigma_mean(self, factors: Factors) -> Tensor:
        """A scalar to watch, outside the gradient graph: the mean log standard deviation over all layers.

        In output space it is half the log variance at input zero.
        """
        ...


@runtime_checkable
class ActivationSpace(Space, Protocol):
    """A space whose KL and prior need the layers' inputs.

    Below, ``coefficients`` (L, n, c) are those of a stack's L layers for n tokens, as its recorders gave them, and
    ``counts`` (n,) says how many tokens each of the n stands for (None: one).
    """

    def recorders(self, phi: Factors, theta: Factors, noise: Noise | None) -> list[Recorder]:
        """``layers(phi, noise)``, each in two steps."""
        ...

    def activation_kl(self, phi: Factors, theta: Factors, coefficients: Tensor, counts: Tensor | None) -> Tensor:
        """KL of the layers' outputs in nats, summed over layers, tokens and channels."""
        ...

    def activation_negative_log_prior(
        self, theta: Factors, prior: Prior, coefficients: Tensor, counts: Tensor | None
    ) -> Tensor:
        """-log p(theta) of the layers' outputs in nats with its normalisers, summed likewise."""
        ...
