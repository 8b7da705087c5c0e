"""A step's loss and its terms: as the rules compute it, and as numbers once an episode is over.

On an accelerator a step is only queued. To ask what came of it would keep the device waiting, so a rule never does.
Numbers are brought to the host together, once an episode. A term that is not finite is noticed then, before anything
that was learned from it is kept.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from abmll.common.errors import TrainingError
from abmll.language.adapter import Adapter
from abmll.methods.optimizer import total_norm

READ_EVERY = 50  # steps of an adaptation, so that a long one that breaks early does not go on to its end
OUTER = "outer step"  # the last of an episode's steps, beside "step 1" to "step K"
TERMS: tuple[str, ...] = (
    "nll",
    "kl",
    "prior",
    "total",
)  # the total last: where it is not finite, the term that made it so is named
NO_NORMS: Mapping[str, Tensor] = MappingProxyType({})


class Loss(NamedTuple):
    """One batch's loss and its unweighted terms, scalars in nats; for their scale see ``abmll.posterior``.

    The total is the nll plus terms that belong to no example, which a step in several parts counts once.
    """

    total: Tensor
    nll: Tensor
    kl: Tensor
    prior: Tensor
    correct: Tensor  # number of right answers in the batch
    size: int  # examples read
    tokens: int  # tokens read, padding left out; like size, zero where no forward pass was needed
    grad_norms: Mapping[str, Tensor] = NO_NORMS  # by tensor, before clipping; once a step is taken
    passes: int = 1  # forward passes over a batch
    options: Tensor | None = None  # (N, C) log-probabilities that the batch's options had before the step
    by_example: bool = False  # all terms are sums over the batch's examples, as the nll always is

    def stepped(self, norms: Mapping[str, Tensor]) -> "Loss":
        """The loss without its graph, once a step is taken; ``norms`` are those of the step's gradient."""
        total, nll, kl, prior = self.total.detach(), self.nll.detach(), self.kl.detach(), self.prior.detach()
        return self._replace(total=total, nll=nll, kl=kl, prior=prior, grad_norms=norms)

    def further(self) -> "Loss":
        """What it adds to the loss of a step that has read another part before."""
        zero = torch.zeros_like(self.nll)
        return self if self.by_example else self._replace(total=self.nll, kl=zero, prior=zero)

    @property
    def grad_norm(self) -> Tensor:
        """The norm of the whole gradient; 0 where no step was taken."""
        return total_norm(self.grad_norms) if self.grad_norms else torch.zeros_like(self.nll)


def combined(parts: Sequence[Loss]) -> Loss:
    """The loss of a step that has read several parts, without a gradient's norms."""
    if len(parts) == 1:
        return parts[0]
    total, nll, kl, prior, correct = (
        torch.stack(terms).sum() for terms in zip(*(part[:5] for part in parts), strict=True)
    )
    size, tokens, passes = (sum(getattr(part, name) for part in parts) for name in ("size", "tokens", "passes"))
    options = [part.options for part in parts if part.options is not None]
    width = max((len(rows[0]) for rows in options), default=0)
    padded = [F.pad(rows, (0, width - len(rows[0])), value=-math.inf) for rows in options]
    read = torch.cat(padded) if padded else None
    return Loss(total, nll, kl, prior, correct, size, tokens, passes=passes, options=read)


class Reading(NamedTuple):
    """A step's ``Loss`` as numbers."""

    total: float
    nll: float
    kl: float
    prior: float
    correct: int
    size: int
    tokens: int
    grad_norm: float
    passes: int


def read_steps(steps: Mapping[str, Loss], role: str, learned: Adapter) -> dict[str, Reading]:
    """Steps by name, in the order they were taken, as numbers; ``learned`` is the adapter in ``role`` after the last.

    Raises ``TrainingError`` that names the first step and its first term or gradient that is not finite, or else the
    tensor of ``learned``: a step can leave infinite values behind although its loss and its gradient were finite.
    """
    scalars: list[Tensor] = []
    for loss in steps.values():
        scalars += [loss.nll, loss.kl, loss.prior, loss.total, loss.correct, loss.grad_norm, *loss.grad_norms.values()]
    whole = {name: torch.isfinite(tensor).all() for name, tensor in learned.named_tensors()}
    numbers = iter(torch.stack([scalar.detach().double() for scalar in (*scalars, *whole.values())]).tolist())
    readings = {}
    for step, loss in steps.items():
        terms = dict(zip(TERMS, islice(numbers, len(TERMS)), strict=True))
        correct, grad_norm = islice(numbers, 2)
        norms = dict(zip(loss.grad_norms, islice(numbers, len(loss.grad_norms)), strict=True))
        _refuse_broken(step, terms, norms)
        own = {"size": loss.size, "tokens": loss.tokens, "grad_norm": grad_norm, "passes": loss.passes}
        readings[step] = Reading(**terms, correct=int(correct), **own)
    for name, is_finite in zip(whole, numbers, strict=True):
        if not is_finite:
            raise TrainingError(f"{role}'s {name} is not finite after the step; lower the learning rates")
    return readings


def read_along(losses: Iterable[Loss], role: str, learned: Adapter) -> None:
    """Take all steps, which happen as their ``losses`` are asked for, and read now and then what came of them.

    Raises ``TrainingError`` as ``read_steps``.
    """
    unread: dict[str, Loss] = {}
    for step, loss in enumerate(losses, start=1):
        unread[f"step {step}"] = loss
        if step % READ_EVERY == 0:
            read_steps(unread, role, learned)
            unread.clear()
    read_steps(unread, role, learned)


def _refuse_broken(step: str, terms: Mapping[str, float], norms: Mapping[str, float]) -> None:
    for term, value in terms.items():
        if not math.isfinite(value):
            raise TrainingError(f"{step}: the loss term '{term}' is {value}; lower the learning rates")
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise TrainingError(f"{step}: the gradient of {name} is not finite; lower the learning rates")


def summarize(steps: Mapping[str, Reading]) -> dict[str, float]:
    """An episode in numbers: nll and accuracy per example over the inner batches, the terms of the last step."""
    inner = [step for name, step in steps.items() if name != OUTER]
    outer, size = steps.get(OUTER), sum(step.size for step in inner)
    last = outer or inner[-1]
    return {
        "nll": sum(step.nll for step in inner) / size,
        "accuracy": sum(step.correct for step in inner) / size,
        "loss": last.total,
        "kl": last.kl,
        "prior": last.prior,
        "grad_norm": inner[-1].grad_norm,
        "outer_grad_norm": outer.grad_norm if outer else 0.0,
    }
