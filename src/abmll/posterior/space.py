"""``Space``, the base class of the Gaussian adapter families, and the small records that its functions take."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import ConfigError
from abmll.posterior.draws import Draws
from abmll.posterior.prior import Prior
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


# x (R, L, d_in) -> (R, L, d_out): what an adapter adds to a layer's output
LayerUpdate = Callable[[Tensor], Tensor]
Place = tuple[int, int]  # which stack, and which of its layers


@dataclass(frozen=True)
class LowRank:
    """(..., d_in) -> (..., d_out): left right x, for left (d_out, r) and right (r, d_in), in the factors' dtype."""

    left: Tensor
    right: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.right.dtype), self.right), self.left)


def low_rank_updates(left: Tensor, right: Tensor) -> list[LayerUpdate]:
    """L times ``LowRank``, for left (L, d_out, r) and right (L, r, d_in)."""
    return [LowRank(*layer) for layer in zip(left.unbind(), right.unbind(), strict=True)]


def kaiming_uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """LoRA's start of A (L, r, d_in): Kaiming-uniform with a = sqrt(5), which is uniform within 1 / sqrt(d_in)."""
    bound = 1.0 / math.sqrt(shape[-1])
    return torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class Space(ABC):
    """A family of Gaussian LoRA adapters: initialisation, sampling, KL and prior of a stack of layers.

    All arithmetic is in the factors' dtype (float32, or float64 in tests); inputs are cast to it, results stay in it.
    Functions over a stack take Factors with a leading L; functions of one layer take an element of ``unbind()``.
    Raises ConfigError for a number that is not finite.
    """

    scaling: float  # s = lora_alpha / r of the mean update s B A

    # False: KL and prior follow from the factors alone. True: they need the layers' inputs.
    per_activation: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))):
            raise ConfigError(f"{self}: give finite numbers")

    def init(self, num_layers: int, d_out: int, d_in: int, r: int, generator: torch.Generator) -> Factors:
        """Fresh float32 factors of L layers on the generator's device: A as LoRA's, B and so the mean update zero."""
        mean_A = kaiming_uniform((num_layers, r, d_in), generator)
        mean_B = torch.zeros(num_layers, d_out, r, device=generator.device)
        return Factors(mean_A, mean_B, *self.init_scales(mean_A, mean_B, generator))

    @abstractmethod
    def init_scales(self, mean_A: Tensor, mean_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh scale_A and scale_B, for means of these shapes."""

    def layers(self, factors: Factors, noise: Noise | None) -> list[LayerUpdate]:
        """The contributions of a stack's L layers; at the posterior mean when noise is None.

        What does not depend on the layer's input is computed, and drawn, here and for the whole stack at once. A weight
        sample of ``noise.rank`` above 0 is drawn here entirely: every input then meets the same function.
        """
        if noise is None:
            return low_rank_updates(self.scaling * factors.mean_B, factors.mean_A)
        return self.noisy_layers(factors, noise)

    @abstractmethod
    def noisy_layers(self, factors: Factors, noise: Noise) -> list[LayerUpdate]:
        """``layers`` with noise."""

    def grouped_layers(
        self, stacks: Sequence[Factors], groups: Mapping[tuple[str, ...], Sequence[Place]], noise: Noise, draws: Draws
    ) -> dict[str, LayerUpdate] | None:
        """``layers`` of all stacks by name, in fewer operations; None where there is no such way with this noise.

        A group is the names and places of layers that read the same tensor. The numbers that ``layers`` would draw for
        an input come from ``draws``.
        """
        return None

    @property
    def sample_components(self) -> int | None:
        """How many terms of rank m ``plain_sample`` has beside the mean's rank r; None: no sample is of the weights."""
        return None

    def plain_sample(self, factors: Factors, directions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A weight sample of a stack as a plain update: left (L, d_out, R), right (L, R, d_in), the scaling in left.

        R is r + ``sample_components`` m for m random ``directions``. The generator lives on the factors' device. Raises
        ConfigError where the noise is not on the weights.
        """
        raise ConfigError(f"{type(self).__name__} has no samples of the weights; use the space 'weight' or 'factor'")

    def kl(self, phi: Factors, theta: Factors) -> Tensor:
        """KL(q(phi) || p(phi | theta)) in nats, a scalar summed over all layers.

        Raises ConfigError where the factors alone do not define it.
        """
        raise ConfigError(
            f"{type(self).__name__} has no divergence between factors; use the space 'weight' or 'factor' "
            "(in the space 'output' it is one between activations)"
        )

    def negative_log_prior(self, theta: Factors, prior: Prior) -> Tensor:
        """-log p(theta) in nats with its normalisers, a scalar summed over all layers.

        Raises ConfigError where the factors alone do not define it.
        """
        raise ConfigError(
            f"{type(self).__name__} has no prior on factors; use the space 'weight' or 'factor' "
            "(in the space 'output' it is one on activations)"
        )

    @abstractmethod
    def linear_covariance(self, layer: Factors, x: Tensor, gradients: Tensor) -> Tensor:
        """Covariance (N, D, D) of the functions sum_t gradients_t . y_t of one layer's noisy outputs y.

        x (N, T, d_in) are the layer's inputs and ``gradients`` (N, D, T, d_out) those of D functions of each of N
        examples; both are zero on padding.
        """

    @abstractmethod
    def log_sigma_mean(self, factors: Factors) -> Tensor:
        """A scalar to watch, outside the gradient graph: the mean log standard deviation over all layers."""
