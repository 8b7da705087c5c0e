"""A step's loss and its terms: as the rules compute it, and as numbers once an episode is over.

On an accelerator a step is only queued, and a rule never asks what came of it: every question would keep the device
waiting. So numbers are brought to the host together, once an episode, and a term that is not finite is noticed then,
before anything that was learned from it is kept.
"""

import math
from collections.abc import Callable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.common.errors import TrainingError
from abmll.language.adapter import Adapter
from abmll.methods.optimizer import total_norm

OUTER = "outer step"  # the last of an episode's steps, beside "step 1" to "step K"
_NOT_YET: Mapping[str, Tensor] = MappingProxyType({})


class Loss(NamedTuple):
    """One batch's loss and its unweighted terms, scalars in nats (see the scale in ``rule.py``)."""

    total: Tensor
    nll: Tensor
    kl: Tensor
    prior: Tensor
    correct: Tensor  # number of right answers in the batch
    size: int  # examples read
    tokens: int  # tokens read, padding left out; like size, zero where no forward pass was needed
    grad_norms: Mapping[str, Tensor] = _NOT_YET  # by tensor, before clipping; once a step is taken
    passes: int = 1  # forward passes over a batch
    options: Tensor | None = None  # (N, C) log-probabilities that the batch's options had before the step

    @property
    def grad_norm(self) -> Tensor:
        """The norm of the whole gradient."""
        return total_norm(self.grad_norms)


Watch = Callable[[Loss], None]  # told of every step of an adaptation, in their order


def unwatched(loss: Loss) -> None:
    """For an adaptation of which only the end matters."""


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
    scalars = [scalar for loss in steps.values() for scalar in (*loss[:5], loss.grad_norm, *loss.grad_norms.values())]
    whole = {name: torch.isfinite(tensor).all() for name, tensor in learned.named_tensors()}
    numbers = iter(torch.stack([scalar.detach().double() for scalar in (*scalars, *whole.values())]).tolist())
    readings = {}
    for step, loss in steps.items():
        total, nll, kl, prior, correct, grad_norm = islice(numbers, 6)
        norms = dict(zip(loss.grad_norms, numbers, strict=False))
        _refuse_broken(step, {"nll": nll, "kl": kl, "prior": prior, "total": total}, norms)
        readings[step] = Reading(total, nll, kl, prior, int(correct), loss.size, loss.tokens, grad_norm, loss.passes)
    for name, is_finite in zip(whole, numbers, strict=True):
        if not is_finite:
            raise TrainingError(f"{role}'s {name} is not finite after the step; lower the learning rates")
    return readings


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
