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
from abmll.posterior import Factors, LayerUpdate, Noise, Prior, Space


@dataclass
class ActivationTerms:
    """Sums over layers, tokens and channels that a forward pass leaves behind in output space."""

    phi: dict[str, Factors]
    theta: dict[str, Factors]
    prior: Prior
    kl: list[Tensor] = field(default_factory=list)
    negative_log_prior: list[Tensor] = field(default_factory=list)


@dataclass
class Trace:
    """Inputs and outputs of the adapted layers in one forward pass, by name, for gradients with respect to outputs."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Bound:
    """What the wrapped layers compute at this moment: their updates by name, and what to collect."""

    updates: dict[str, LayerUpdate]
    mask: Tensor | None
    terms: ActivationTerms | None
    trace: Trace | None = None


class Wiring:
    """The link between one model's wrapped layers and the adapter they use now; with none bound, the bare model."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.bound: Bound | None = None

    @contextmanager
    def use(
        self,
        phi: Adapter | None,
        mask: Tensor | None,
        noise: Noise | None = None,
        theta: Adapter | None = None,
        prior: Prior | None = None,
        trace: Trace | None = None,
    ) -> Iterator[ActivationTerms | None]:
        """Bind ``phi`` (None: the bare model) for the forward passes inside.

        ``mask`` (R, L) is False on padding (None: there is none).

        With ``theta`` and ``prior`` given in a space whose divergence needs activations, the terms are collected;
        with ``trace``, the layers' inputs and outputs.
        """
        terms = None
        if phi is not None and self.space.per_activation and theta is not None and prior is not None:
            terms = ActivationTerms(phi.by_layer(), theta.by_layer(), prior)
        before = self.bound
        self.bound = None if phi is None else Bound(self._updates(phi, noise), mask, terms, trace)
        try:
            yield terms
        finally:
            self.bound = before

    def _updates(self, phi: Adapter, noise: Noise | None) -> dict[str, LayerUpdate]:
        """What each layer adds, by its name; drawn as far as it can be."""
        return {
            name: update
            for shape, factors in phi.stacks.items()
            for name, update in zip(phi.layers[shape], self.space.layers(factors, noise), strict=True)
        }


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
        if bound.terms is not None:
            space, phi = self.wiring.space, bound.terms.phi[self.name]
            # x is left attached: the input of this layer is a sample of phi's layers below, and their share of the
            # gradient belongs to the expectation.
            theta, prior = bound.terms.theta[self.name], bound.terms.prior
            bound.terms.kl.append(space.activation_kl(phi, theta, x, bound.mask))
            bound.terms.negative_log_prior.append(space.activation_negative_log_prior(theta, prior, x, bound.mask))
        y = y + bound.updates[self.name](x).to(y.dtype)
        if bound.trace is not None:
            bound.trace.inputs[self.name] = x.detach()
            # The lowest layers' outputs depend on nothing that is learned: they begin the graph themselves.
            bound.trace.outputs[self.name] = y if y.requires_grad else y.requires_grad_()
        return y


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
