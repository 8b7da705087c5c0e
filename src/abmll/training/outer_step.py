"""An outer step: ``meta_batch`` episodes that begin from one state, and what theta learns from all of them.

Several processes share the episodes out. Whoever computes an episode, its share of theta's step is the same, and the
shares are averaged in the episodes' order: the number of processes changes nothing.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.common.config import TrainConfig
from abmll.common.errors import TrainingError
from abmll.common.processes import ALONE, Processes
from abmll.language.adapter import Adapter
from abmll.methods import OUTER, Loss, Rule, State, read_steps, summarize
from abmll.posterior.space import Space
from abmll.training.episodes import Episodes
from abmll.training.schedule import rate


class Learned(NamedTuple):
    """An episode before theta's step: its losses by name, and what it gives to that step."""

    episode: int
    losses: Mapping[str, Loss]
    share: Mapping[str, Tensor]
    left_out: int  # demonstrations


@dataclass(frozen=True)
class OuterStep:
    """Takes outer steps of ``rule``, each with the other ``processes`` of the run."""

    rule: Rule[Any]
    episodes: Episodes
    config: TrainConfig
    processes: Processes = ALONE

    def take(self, state: State, first: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Let ``state`` learn from ``meta_batch`` episodes of which ``first`` is the first.

        Returns the row of metrics and the cost of each, in their order. Raises ``TrainingError``, with the episode and
        its task, where a loss term is not finite, or where nothing has moved after the very first step.
        """
        started, count = time.perf_counter(), self.config.meta_batch
        before = state.theta.clone() if first == 0 else None
        learned: list[Learned] = []
        with self.processes.agreed():
            begun = {name: tensor.clone() for name, tensor in state.passed_on().items()} if count > 1 else {}
            for part in self.processes.own(count):
                if count > 1:
                    state.put_back(begun)
                with self._named(first + part):
                    learned.append(self._episode(state, first + part))
        mean = self.processes.mean([one.share for one in learned], count)
        if count > 1:
            state.put_back(state.passed_on() | mean)
        norms = self.rule.take(state, mean, self._rate(first + count - 1))
        seconds = (time.perf_counter() - started) / count
        with self.processes.agreed():
            log_sigma = mean_log_sigma(self.rule.scorer.space, state.theta) if self.rule.is_posterior else None
            rows = [self._outcome(state, one, norms, log_sigma, seconds) for one in learned]
            if before is not None:
                with self._named(0):
                    _refuse_unmoved(before, {"phi": state.phi, "theta": state.theta})
        return [(row, cost) for row, cost in self.processes.joined(rows, count)]

    def learn(self, state: State, episode: int) -> tuple[dict[str, Loss], dict[str, Tensor]]:
        """The K inner steps of an episode: their losses and the outer step's, by name, and the share of theta's step.

        The share is of the batch that is left, or else of the last one.
        """
        self.rule.begin_episode(state, done=episode / self.config.max_steps)
        batches = self.episodes.batches(episode)
        losses, batch = {}, next(batches)
        for k in range(self.config.inner_steps):
            generator = self.episodes.generator(episode, k)
            losses[f"step {k + 1}"] = self.rule.inner_step(state, batch, generator, self._rate(episode))
            batch = next(batches, batch)
        outer, share = self.rule.share(state, batch, self.episodes.generator(episode, self.config.inner_steps))
        return losses if outer is None else losses | {OUTER: outer}, share

    def _rate(self, episode: int) -> float:
        return rate(self.config, episode, self.config.max_steps)

    def _episode(self, state: State, episode: int) -> Learned:
        left_out = self.episodes.left_out
        losses, share = self.learn(state, episode)
        if self.config.meta_batch > 1:  # the next episode writes over what is not copied; all count the same steps
            passed_on = {name: one for name, one in state.passed_on().items() if not name.endswith(".step")}
            share = {name: tensor.clone() for name, tensor in (share | passed_on).items()}
        return Learned(episode, losses, share, self.episodes.left_out - left_out)

    def _outcome(
        self, state: State, one: Learned, norms: Mapping[str, Tensor], log_sigma: float | None, seconds: float
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The episode's row of metrics, after theta's step, and its cost; ``seconds`` are its part of the step's."""
        losses = dict(one.losses)
        if OUTER in losses:
            losses[OUTER] = losses[OUTER].stepped(norms)
        with self._named(one.episode):
            steps = read_steps(losses, "theta", state.theta)
        about = {"episode": one.episode + 1, "task": self.episodes.name(one.episode)}
        return about | summarize(steps) | {"log_sigma": log_sigma}, {
            "episode": one.episode + 1,
            "seconds": seconds,
            "tokens": sum(step.tokens for step in steps.values()),
            "steps": sum(bool(loss.grad_norms) for loss in losses.values()),
            "forward_passes": sum(step.passes for step in steps.values()),
            "demonstrations_left_out": one.left_out,
        }

    @contextmanager
    def _named(self, episode: int) -> Iterator[None]:
        """Inside, a ``TrainingError`` says in which episode it came up, and of which task."""
        try:
            yield
        except TrainingError as error:
            name = self.episodes.name(episode)
            raise TrainingError(f"episode {episode + 1}, task '{name}': {error}") from error


def mean_log_sigma(space: Space, adapter: Adapter) -> float:
    """The mean log standard deviation over all adapted layers (output space: at input zero)."""
    layers = {shape: len(names) for shape, names in adapter.layers.items()}
    means = [count * space.log_sigma_mean(adapter.stacks[shape]).double() for shape, count in layers.items()]
    return float(torch.stack(means).sum()) / sum(layers.values())


def _refuse_unmoved(before: Adapter, roles: Mapping[str, Adapter]) -> None:
    """Both start at ``before``. Standard deviations may be held fixed on purpose, means never are."""
    for role, after in roles.items():
        if all(map(torch.equal, before.mean_tensors(), after.mean_tensors())):
            raise TrainingError(f"the mean of {role} did not move in the first episode; are the learning rates zero?")
