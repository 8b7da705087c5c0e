"""What a rule that fits more than one adapter, or more than batches, is given of an unseen task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from abmll.common.config import ContinuedConfig, LearningConfig
from abmll.common.settings import flatten, pick
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.encoding import Encoded
from abmll.methods.loss import Watch, unwatched
from abmll.methods.rule import Rule


@dataclass(frozen=True)
class Support:
    """The labelled examples of an unseen task.

    ``batches(m)`` are those of learner number m, one a step, in an order and with noise of its own; ``alone(i)`` is
    example i by itself; ``seed`` is the adaptation's; ``watch`` is to be told of the first learner's steps.
    """

    examples: Sequence[Encoded]
    seed: int
    batches: Callable[[int], Iterator[tuple[Batch, torch.Generator]]]
    alone: Callable[[int], Batch]
    watch: Watch = unwatched


@runtime_checkable
class Fits(Protocol):
    """A rule that learns an unseen task by ``fit``, of which ``adapt`` is a part."""

    def num_batches(self, steps: int, size: int) -> int:
        """How many batches ``fit`` reads of a support of that size, for ``steps`` gradient steps."""
        ...

    def fit(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """The members of what is believed of the task; ``theta`` is left as it is."""
        ...


def learn(rule: Rule, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
    """What a rule, by its ``fit`` or else its ``adapt``, believes of an unseen task."""
    if isinstance(rule, Fits):
        return rule.fit(theta, support)
    return (rule.adapt(theta, support.batches(0), support.watch),)


def fit_members(rule: Rule, support: Support, starts: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """One ``adapt`` from each start, member m on the batches of learner m; the first one is watched."""
    return tuple(
        rule.adapt(start, support.batches(member), unwatched if member else support.watch)
        for member, start in enumerate(starts)
    )


def num_batches(rule: Rule, steps: int, size: int) -> int:
    """How many batches ``learn`` reads."""
    return rule.num_batches(steps, size) if isinstance(rule, Fits) else steps


def continued(config: LearningConfig) -> ContinuedConfig:
    """The settings with those of the continuing methods, at their defaults where there are none."""
    return config if isinstance(config, ContinuedConfig) else pick(ContinuedConfig, flatten(config))
