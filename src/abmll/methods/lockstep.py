"""Several learners of one task side by side: a step of all of them is one pass, one backward pass, one optimizer step.

Each comes out as if it had learned alone, to rounding: it meets its own batches, draws its own noise, and its gradient
is clipped by its own norm. On an accelerator a step of a small model takes as long as it has operations, and five
learners have hardly more of them than one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.language.joined import joined, stack, stacked_updates
from abmll.language.scorer import Pass, Scores
from abmll.methods.loss import Loss, read_along
from abmll.methods.rule import PhiState, Rule
from abmll.methods.support import Support
from abmll.posterior import Factors
from abmll.posterior.stacked import can_stack

POSITIONS = 16_384  # of the batches of all learners that share a pass, at most, where no setting says how many they are
POSITIONS_CPU = 1024  # where more are not faster, and take memory


def learn_each(rule: Rule[Any], starts: Sequence[Adapter], support: Support) -> tuple[Adapter, ...]:
    """What the learners 0, 1, ... of ``support`` learn from their ``starts``, as many side by side as settings say.

    They learn one after the other where their updates cannot be stacked. Raises ``TrainingError`` as ``Rule.learn``.
    """
    count = _at_once(rule, support) if _can_stack(rule) else 1
    learned: list[Adapter] = []
    for first in range(0, len(starts), count):
        states = [rule.init(start) for start in starts[first : first + count]]
        if len(states) == 1:
            learned.append(rule.learn(states[0], support, first))
        else:
            learned += Lockstep(rule, states).learn(support, first)
    return tuple(learned)


def _at_once(rule: Rule[Any], support: Support) -> int:
    """How many learners share a pass, unless a setting says it: so many that their longest batches have room."""
    if rule.config.members_at_once is not None:
        return rule.config.members_at_once
    positions = POSITIONS_CPU if rule.scorer.device.type == "cpu" else POSITIONS
    size = min(support.batch_size, len(support.encoded)) * max(map(len, support.encoded))
    return max(1, positions // size)


def _can_stack(rule: Rule[Any]) -> bool:
    """Whether this rule's learners can share a pass with gradients: none that is compiled or has activations anew."""
    scorer = rule.scorer
    if not scorer.packed or scorer.gradient_checkpointing or scorer.compilation is not None:
        return False
    noise = rule.noise(None, torch.Generator(scorer.device))
    return can_stack(scorer.space, noise)


class Lockstep:
    """Learners whose parameters lie in the same tensors, with a leading axis of C learners."""

    def __init__(self, rule: Rule[Any], states: Sequence[PhiState]) -> None:
        self.rule = rule
        self.phi = stack([state.phi for state in states])
        for (_, own), (_, whole) in zip(states[0].phi.named_tensors(), self.phi.named_tensors(), strict=True):
            whole.requires_grad_(own.requires_grad)
        self.theta = stack([state.theta for state in states])
        self.optimizer = rule.phi_optimizer(self.phi)

    def learn(self, support: Support, first: int = 0) -> list[Adapter]:
        """Each learner's phi; they are those of ``support`` from number ``first`` on."""
        read_along(self._steps(support, first), "phi", self.phi)
        return [phi.clone() for phi in _apart(self.phi)]

    def _steps(self, support: Support, first: int) -> Iterator[Loss]:
        learners = range(first, first + len(_apart(self.phi)))
        for step in zip(*(support.batches(number) for number in learners), strict=True):
            batches, generators = zip(*step, strict=True)
            loss, own = self.step(batches, generators)
            if first == 0:
                support.losses.append(own)
            yield loss

    def step(self, batches: Sequence[Batch], generators: Sequence[torch.Generator]) -> tuple[Loss, Loss]:
        """One step of every learner on its batch; the loss of all together, and that of the first alone."""
        rule, phis = self.rule, _apart(self.phi)
        batch, layout = joined(batches, even=True)
        noises = [rule.noise(one.mask, generator) for one, generator in zip(batches, generators, strict=True)]
        updates = stacked_updates(rule.scorer.wiring, self.phi, noises, layout)
        scores = rule.scorer.scores(batch, None, Pass(updates=updates))
        loss = rule.with_terms(rule.read(scores, batch), _flat(self.phi), _flat(self.theta))
        loss.total.backward()
        with torch.no_grad():
            own = rule.read(_first(scores, batches[0]), batches[0])
            own = rule.with_terms(own, phis[0], _apart(self.theta)[0])
            norms = _clip(self.optimizer.named, rule.config.max_grad_norm)
        self.optimizer.step(1.0, max_norm=0.0)  # clipped already
        whole = {name: torch.linalg.vector_norm(each) for name, each in norms.items()}
        return loss.stepped(whole), own.stepped({name: each[0] for name, each in norms.items()})


def _apart(whole: Adapter) -> list[Adapter]:
    """The C adapters, as views through which gradients reach the whole."""
    stacks = {shape: factors.unbind() for shape, factors in whole.stacks.items()}
    each = zip(*stacks.values(), strict=True)
    return [Adapter(dict(zip(stacks, own, strict=True)), whole.layers) for own in each]


def _flat(whole: Adapter) -> Adapter:
    """One of C L layers, for what is summed over layers, as a view."""
    stacks = {shape: Factors(*(tensor.flatten(0, 1) for tensor in one)) for shape, one in whole.stacks.items()}
    return Adapter(stacks, whole.layers)


def _first(scores: Scores, batch: Batch) -> Scores:
    """The scores of the first learner's batch."""
    count, width = batch.option_lengths.shape
    options, sums = scores.options[:count, :width], scores.sums[:count, :width]
    written = None if scores.written is None else scores.written[:count]
    return Scores(options, sums, scores.answer_tokens[:count], None, written)


def _clip(named: Mapping[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    """Clip each learner's gradient by its own norm (0: not at all); returns the norms before that, (C,) a tensor."""
    gradients = {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}
    norms = {
        name: torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
        for name, gradient in gradients.items()
    }
    if max_norm > 0:
        factors = (max_norm / torch.linalg.vector_norm(torch.stack(list(norms.values())), dim=0)).clamp(max=1.0)
        for gradient in gradients.values():
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms
