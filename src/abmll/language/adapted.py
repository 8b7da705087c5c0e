"""Linear layers with a Gaussian LoRA adapter beside them, and the one place that says what they compute now.

A wrapped layer calls its base layer and adds the adapter's contribution; it never reads the base's weight, so that
quantised bases work. Which Gaussian it uses is not stored in it: the model's ``Wiring`` binds an adapter for the time
of one forward pass, and thousands of task posteriors can share one base.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from abmll.adapter import Adapter
from abmll.errors import ConfigError
from abmll.language.targets import Target, find_targets
from abmll.posterior import Factors, Noise, Prior, Space


@dataclass
class ActivationTerms:
    """Sums over layers, tokens and channels that a forward pass leaves behind in output space."""

    theta: dict[str, Factors]
    prior: Prior
    kl: list[Tensor] = field(default_factory=list)
    negative_log_prior: list[Tensor] = field(default_factory=list)


@dataclass
class Bound:
    """What the wrapped layers compute at this moment: phi by layer name, the noise, and what to collect."""

    phi: dict[str, Factors]
    noise: Noise | None
    mask: Tensor
    terms: ActivationTerms | None


class Wiring:
    """The link between one model's wrapped layers and the adapter they use now; with none bound, the bare model."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.bound: Bound | None = None

    @contextmanager
    def use(
        self,
        phi: Adapter | None,
        mask: Tensor,
        noise: Noise | None = None,
        theta: Adapter | None = None,
        prior: Prior | None = None,
    ) -> Iterator[ActivationTerms | None]:
        """Bind ``phi`` (None: the bare model) for the forward passes inside; ``mask`` (N, T) is False on padding.

        With ``theta`` and ``prior`` given in a space whose divergence needs activations, the terms are collected.
        """
        terms = None
        if phi is not None and self.space.per_activation and theta is not None and prior is not None:
            terms = ActivationTerms(theta.by_layer(), prior)
        before = self.bound
        self.bound = None if phi is None else Bound(phi.by_layer(), noise, mask, terms)
        try:
            yield terms
        finally:
            self.bound = before


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus, while an adapter is bound, its Gaussian LoRA contribution."""

    def __init__(self, base: nn.Module, name: str, wiring: Wiring) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d_in) -> (N, T, d_out), in the base layer's dtype; the adapter itself computes in fp32."""
        y = self.base(x)
        bound = self.wiring.bound
        if bound is None:
            return y
        phi = bound.phi[self.name]
        space = self.wiring.space
        if bound.terms is not None:
            # x is left attached: the input of this layer is a sample of phi's layers below, and their share of the
            # gradient belongs to the expectation.
            theta, prior = bound.terms.theta[self.name], bound.terms.prior
            bound.terms.kl.append(space.activation_kl(phi, theta, x, bound.mask))
            bound.terms.negative_log_prior.append(space.activation_negative_log_prior(theta, prior, x, bound.mask))
        return y + space.delta(phi, x, bound.noise).to(y.dtype)


def adapt_linears(
    model: nn.Module, target_modules: tuple[str, ...], layers_to_transform: str | None, wiring: Wiring
) -> list[Target]:
    """Freeze ``model`` and wrap its target layers in place; returns them in the model's order.

    Raises ``ConfigError`` where they cannot be found, or where the model has been wrapped before.
    """
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ConfigError("this model carries adapters already: share its scorer, or load the model once more")
    model.requires_grad_(False)
    targets = find_targets(model, target_modules, layers_to_transform)
    for target in targets:
        model.set_submodule(target.name, AdaptedLinear(model.get_submodule(target.name), target.name, wiring))
    return targets
