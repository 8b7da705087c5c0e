"""Linear layers with a Gaussian LoRA adapter beside them, and the one place that says what they compute now.

A wrapped layer calls its base layer and adds the adapter's contribution; it never reads the base's weight, so that
quantised bases work. Which Gaussian it uses is not stored in it: the model's ``Wiring`` binds an adapter for the time
of one forward pass, and thousands of task posteriors can share one base.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.base import Wrapper
from abmll.language.batch import Batch
from abmll.language.readers import Readers
from abmll.language.targets import Target, find_targets
from abmll.posterior import Draws, LayerUpdate, Noise, OutputSpace, Prior, Record, Space
from abmll.posterior.space import Place

T = TypeVar("T")


@dataclass
class Trace:
    """Inputs and outputs of the adapted layers in one forward pass, by name, for gradients with respect to outputs."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ActivationTerms:
    """Divergence and prior of output space, from the coefficients that a forward pass leaves behind."""

    space: OutputSpace
    phi: Adapter
    theta: Adapter
    batch: Batch
    recorders: Mapping[str, Record]
    coefficients: dict[str, Tensor] = field(default_factory=dict)

    def kl(self) -> Tensor:
        """KL(q(phi) || p(phi | theta)), a scalar summed over layers, tokens and channels."""
        return self._sum(lambda shape, *read: self.space.activation_kl(self.phi.stacks[shape], *read))

    def negative_log_prior(self, prior: Prior) -> Tensor:
        """-log p(theta), summed likewise."""
        return self._sum(lambda shape, theta, *read: self.space.activation_negative_log_prior(theta, prior, *read))

    def _sum(self, term: Callable[..., Tensor]) -> Tensor:
        mask, counts = self.batch.mask, self.batch.counts
        if counts is not None:
            counts = counts.flatten() if mask is None else counts[mask]
        sums = []
        for shape, theta in self.theta.stacks.items():
            layers = torch.stack([self.coefficients[name].flatten(0, 1) for name in self.theta.layers[shape]])
            sums.append(term(shape, theta, layers if mask is None else layers[:, mask.flatten()], counts))
        return torch.stack(sums).sum()


@dataclass
class Bound:
    """What the wrapped layers compute at this moment: their updates by name, and what to collect."""

    updates: Mapping[str, LayerUpdate]
    terms: ActivationTerms | None
    trace: Trace | None = None

    def again(self) -> "Bound":
        """The same for a block that is computed anew, of which nothing more is to be collected."""
        return replace(self, terms=None if self.terms is None else replace(self.terms, coefficients={}), trace=None)


class Wiring:
    """The link between one model's wrapped layers and the adapter they use now; with none bound, the bare model."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.bound: Bound | None = None
        self.readers = Readers()

    @contextmanager
    def use(
        self,
        phi: Adapter | None,
        batch: Batch,
        noise: Noise | None = None,
        theta: Adapter | None = None,
        trace: Trace | None = None,
    ) -> Iterator[ActivationTerms | None]:
        """Bind ``phi`` (None: the bare model) for the forward passes inside, which read ``batch``.

        With ``theta`` in a space whose divergence needs activations, what it needs is collected; with ``trace``, the
        layers' inputs and outputs are.
        """
        space, terms, bound = self.space, None, None
        if phi is not None and theta is not None and isinstance(space, OutputSpace):
            recorders = self._recorders(space, phi, theta, noise)
            terms = ActivationTerms(space, phi, theta, batch, recorders)
            bound = Bound({}, terms, trace)
        elif phi is not None:
            updates = self._grouped(phi, noise) if noise is not None and trace is None else None
            bound = Bound(updates or by_name(phi, lambda shape: space.layers(phi.stacks[shape], noise)), None, trace)
        with self.bind(bound):
            yield terms

    def _recorders(self, space: OutputSpace, phi: Adapter, theta: Adapter, noise: Noise | None) -> dict[str, Record]:
        """By layer; with local noise of a rank, layers that read the same tensor share one recorder."""
        if noise is None or not noise.rank or noise.kind == "shared":
            recorders = by_name(phi, lambda shape: space.recorders(phi.stacks[shape], theta.stacks[shape], noise))
            return {name: one.record for name, one in recorders.items()}
        groups, together = self.groups(phi)
        channels = {name: len(phi.stacks[shape].mean_B[0]) for shape, names in phi.layers.items() for name in names}
        draws = Draws(noise.generator, noise.rank, channels, together)
        stacks = [(factors, theta.stacks[shape]) for shape, factors in phi.stacks.items()]
        return space.shared_recorders(stacks, groups, draws)

    def _grouped(self, phi: Adapter, noise: Noise) -> dict[str, LayerUpdate] | None:
        """The updates of layers that read the same tensor together, where the space can do that."""
        groups, together = self.groups(phi)
        draws = Draws(noise.generator, noise.rank, dict.fromkeys(chain(*groups), 0), together)
        return self.space.grouped_layers(list(phi.stacks.values()), groups, noise, draws)

    def groups(self, phi: Adapter) -> tuple[dict[tuple[str, ...], list[Place]], list[str]]:
        """The adapted layers by what they read, the same tensor in one group, with their places in ``phi``'s stacks.

        Beside them the layers that see all positions, in the order of their calls.
        """
        places = {
            name: (stack, layer) for stack, names in enumerate(phi.layers.values()) for layer, name in enumerate(names)
        }
        groups = {names: [places[name] for name in names] for names in self.readers.groups(places)}
        return groups, [name for name in self.readers.together if name in places]

    @contextmanager
    def use_updates(self, updates: Mapping[str, LayerUpdate]) -> Iterator[None]:
        """Bind these updates, by the layers' names, for whatever passes happen inside."""
        with self.bind(Bound(updates, None)):
            yield

    @contextmanager
    def bind(self, bound: Bound | None) -> Iterator[None]:
        """Inside, the layers compute what ``bound`` says."""
        before, self.bound = self.bound, bound
        try:
            yield
        finally:
            self.bound = before


def by_name(phi: Adapter, made: Callable[[str], Sequence[T]]) -> dict[str, T]:
    """What ``made`` gives for each layer of a stack, by the layers' names."""
    return {name: one for shape in phi.stacks for name, one in zip(phi.layers[shape], made(shape), strict=True)}


class AdaptedLinear(Wrapper):
    """A frozen linear layer plus, while an adapter is bound, its Gaussian LoRA contribution.

    That is computed on ``device``, where adapters are, wherever the layer itself is.
    """

    def __init__(self, linear: nn.Module, target: Target, wiring: Wiring, device: torch.device) -> None:
        super().__init__(linear)
        self.target = target
        self.wiring = wiring
        self.device = device

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d_in) -> (N, T, d_out), in the base layer's dtype; the adapter itself computes in fp32."""
        y = self.inner(x)
        bound, name = self.wiring.bound, self.target.name
        if bound is None:
            return y
        x = x.to(self.device)
        if bound.terms is None:
            y = y + bound.updates[name](x).to(y)
        else:
            # x is left attached: the input of this layer is a sample of phi's layers below, and their share of the
            # divergence's gradient belongs to the expectation.
            output, bound.terms.coefficients[name] = bound.terms.recorders[name](x)
            y = y + output.to(y)
        if bound.trace is not None:
            bound.trace.inputs[name] = x.detach()
            # The lowest layers' outputs depend on nothing that is learned: they begin the graph themselves.
            bound.trace.outputs[name] = y if y.requires_grad else y.requires_grad_()
        return y


def adapt_linears(
    model: nn.Module, target_modules: tuple[str, ...], layers_to_transform: str | None, wiring: Wiring
) -> dict[str, AdaptedLinear]:
    """Freeze ``model`` and wrap its target layers in place; returns the wrapped ones by name, in the model's order.

    Raises ``ConfigError`` where they cannot be found, or where the model has been wrapped before.
    """
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ConfigError("this model carries adapters already: share its scorer, or load the model once more")
    model.requires_grad_(False)
    adapted, device = {}, next(model.parameters()).device
    for target in find_targets(model, target_modules, layers_to_transform):
        adapted[target.name] = AdaptedLinear(model.get_submodule(target.name), target, wiring, device)
        model.set_submodule(target.name, adapted[target.name])
    return adapted
