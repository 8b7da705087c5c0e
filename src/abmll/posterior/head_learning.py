"""Learning theta's part of the head: by how well the head predicts held-out examples of tasks it has just learned.

    loss(theta) = - sum over tasks log p(query | support; theta) + pull / 2 |eta - eta_0|^2

eta are the prior's numbers, logarithms of those that are positive, and eta_0 what learning starts from: few tasks move
little. The gradient goes through the head's mode (``mode.at_mode``), so that it is that of amortised inference, with
a likelihood that reaches theta.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.head import Metric, Where
from abmll.posterior.hypotheses import HeadPrior, Hypotheses, Known
from abmll.posterior.latent import root
from abmll.posterior.mode import at_mode
from abmll.posterior.paths import sample
from abmll.posterior.threads import one_thread

STEPS, RATE = 60, 0.1
DRAWS = 16  # of every hypothesis


class Episode(NamedTuple):
    """A training task: examples to learn from, and others to be predicted."""

    support: Known
    answers: Tensor  # (N,)
    query: Known
    query_answers: Tensor  # (M,)


class Numbers(NamedTuple):
    """eta: the prior's numbers as tensors that a gradient can move."""

    weight_mean: Tensor  # logarithms
    weight_std: Tensor  # logarithms
    bias_std: Tensor  # logarithm
    residual: Tensor  # logarithm
    scale: Tensor  # logarithm of what multiplies every tau
    labelled: Tensor
    open: Tensor

    @classmethod
    def of(cls, prior: HeadPrior) -> "Numbers":
        """Those of ``prior``."""
        positive = (prior.weight_mean, prior.weight_std, prior.bias_std, prior.residual, 1.0)
        logs = (torch.tensor(value, dtype=torch.float64).log() for value in positive)
        return cls(*logs, *(torch.tensor(value, dtype=torch.float64) for value in (prior.labelled, prior.open)))

    def hypotheses(self, prior: HeadPrior, is_labelled: bool) -> Hypotheses:
        """The hypotheses of a task, as these numbers have them."""
        old = Hypotheses.of(prior, is_labelled)
        weights = self.labelled if is_labelled else self.open
        return old._replace(
            taus=old.taus * self.scale.exp(),
            log_weights=torch.log_softmax(weights.flatten(), 0),
            bias_std=self.bias_std.exp() if is_labelled else old.bias_std,
            residual=self.residual.exp(),
            mean=self.weight_mean.exp()[: len(old.mean)],
            std=self.weight_std.exp()[: len(old.std)],
        )

    def prior(self, start: HeadPrior) -> HeadPrior:
        """The prior with these numbers."""
        mean, std = (tuple(value.detach().exp().tolist()) for value in (self.weight_mean, self.weight_std))
        scale = float(self.scale.detach().exp())
        labelled = torch.log_softmax(self.labelled.detach().flatten(), 0).view(self.labelled.shape)
        return replace(
            start,
            weight_mean=mean,
            weight_std=std,
            bias_std=float(self.bias_std.detach().exp()),
            residual=float(self.residual.detach().exp()),
            taus=tuple(tau * scale for tau in start.taus),
            labelled=tuple(map(tuple, labelled.tolist())),
            open=tuple(torch.log_softmax(self.open.detach(), 0).tolist()),
        )


def predictive_nll(hypotheses: Hypotheses, episode: Episode, draws: int = DRAWS) -> Tensor:
    """-log p(query | support), summed over the query's examples (nats), with its gradient.

    Hypotheses are weighed by their evidence, each is read at ``draws`` samples of the Gaussian at its mode. In these w
    may be negative, also where a head does not let it.
    """
    metric = Metric(episode.support.hidden)
    inputs = metric(episode.support.hidden)
    latent = hypotheses.latent(inputs @ inputs.mT, episode.support.scores)
    mode = at_mode(latent, episode.answers)
    weights = torch.log_softmax(hypotheses.log_joint(latent, mode), 0)
    index = torch.arange(len(weights)).repeat_interleave(draws)
    generator = torch.Generator().manual_seed(0)
    paths = sample(latent, mode, index, generator)
    asked, factor = metric(episode.query.hidden), root(latent.kernel)
    where = Where.of(hypotheses, factor, inputs, asked, episode.query.scores)
    normal = torch.randn(len(index), 1, where.offset.shape[-1], generator=generator, dtype=torch.float64)
    logs = torch.log_softmax(where.scores(paths, index, normal), -1)
    answers = episode.query_answers[:, None].expand(len(index), -1, 1)
    each = logs.gather(-1, answers)[..., 0] + weights[index, None]  # (P, M)
    return -(torch.logsumexp(each, 0) - torch.tensor(float(draws)).log()).sum()


@one_thread()
def learn_prior(
    episodes: Sequence[Episode],
    start: HeadPrior,
    on_step: Callable[[], object] = lambda: None,
    learned: Sequence[str] = Numbers._fields,
    pull: float = 1.0,
) -> HeadPrior:
    """The prior after ``STEPS`` steps of Adam down the loss, from ``start``, which also is where it is pulled to.

    ``learned`` names those of ``Numbers`` that move, ``pull`` is the precision of eta around eta_0.
    """
    first = Numbers.of(start)
    numbers = Numbers(*(value.clone().requires_grad_() for value in first))
    optimizer = torch.optim.Adam([getattr(numbers, name) for name in learned], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        moved = sum(((new - old).square().sum() for new, old in zip(numbers, first, strict=True)), torch.zeros(()))
        (0.5 * pull * moved).backward()
        for episode in episodes:
            predictive_nll(numbers.hypotheses(start, episode.support.is_labelled), episode).backward()
        optimizer.step()
        on_step()
    return numbers.prior(start)
