"""Reptile (Nichol, Achiam and Schulman, arXiv 1803.02999), with the ABMLL paper's settings.

An episode of task i: phi <- theta; K AdamW steps on phi against NLL(phi);  theta <- theta + eps (phi - theta),  with eps
falling linearly from ``reptile_epsilon`` to 0 over the episodes. No gradient moves theta, so it has no optimizer. What
is interpolated are the factors B and A themselves, not their product, whose interpolation has twice the rank.
"""

from typing import ClassVar

import torch

from abmll.common.config import LearningConfig
from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.scorer import OptionScorer
from abmll.methods.lora import StructuredLora
from abmll.methods.optimizer import AdapterOptimizer
from abmll.methods.rule import State


class Reptile(StructuredLora):
    """The rule; its inner steps and what it does with an unseen task are structured LoRA's.

    Raises ``ConfigError`` where a query batch is asked for that nothing would be computed from.
    """

    name: ClassVar[str] = "reptile"
    label: ClassVar[str] = "Reptile"

    def __init__(self, scorer: OptionScorer, config: LearningConfig, num_tasks: int) -> None:
        if config.outer_batch == "query":
            raise ConfigError("outer_batch is 'query', but reptile's outer step reads no batch; use outer_batch 'last'")
        super().__init__(scorer, config, num_tasks)

    def init(self, theta: Adapter) -> State:
        """Theta as given, phi its copy, an optimizer for phi's mean factors alone."""
        theta, phi = theta.clone(), theta.clone()
        for tensor in phi.mean_tensors():
            tensor.requires_grad_()
        return State(theta, phi, AdapterOptimizer(phi, self.config.learning_rate, 0.0, self.config.weight_decay), None)

    def begin_episode(self, state: State, done: float) -> None:
        """phi <- theta; its AdamW moments persist across tasks or start afresh."""
        state.done = done
        state.phi.copy_(state.theta)
        super().begin_episode(state, done)

    @torch.no_grad()
    def outer_step(self, state: State, batch: Batch, generator: torch.Generator, rate: float) -> None:
        """theta <- theta + eps (phi - theta); eps has its own decay and leaves the learning rates' factor alone."""
        epsilon = self.config.reptile_epsilon * (1.0 - state.done)
        for into, reached in zip(state.theta.mean_tensors(), state.phi.mean_tensors(), strict=True):
            into.lerp_(reached, epsilon)
