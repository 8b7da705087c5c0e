"""Small cases of a head, and what integration over a grid says of them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from abmll.posterior.head import HeadPosterior
from abmll.posterior.hypotheses import SUBSETS, HeadPrior, Hypotheses, Known

Quadrature = Callable[[Tensor, int], tuple[Tensor, Tensor]]
OFF = -1e4  # log weight of a hypothesis that is not to count


def prior_of(taus: tuple[float, ...] = (0.0, 2.0), subsets: tuple[int, ...] = (0, 1, 2), **changes: Any) -> HeadPrior:
    """A prior of those hypotheses on the scores alone, under which nothing of g's variance is left out."""
    rows = tuple(0.0 if number in subsets else OFF for number in range(len(SUBSETS) + 1))
    labelled = tuple((row,) * len(taus) for row in rows[:3])
    return HeadPrior(**{"taus": taus, "labelled": labelled, "open": rows, "residual": 1.0, **changes})


def known(size: int, options: int = 2, width: int = 2, seed: int = 0, is_labelled: bool = True) -> Known:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, 1, width, generator=generator)
    return Known(hidden, 2 * torch.randn(size, options, 3, generator=generator).double(), is_labelled)


def apart(all_of_them: Known, size: int) -> tuple[Known, Known]:
    """The first ``size`` to learn from, and the others to be asked."""
    hidden, scores, *how = all_of_them
    return Known(hidden[:size], scores[:size], *how), Known(hidden[size:], scores[size:], *how)


def features(hidden: Tensor, size: int) -> Tensor:
    """(N + M, d): of length one, less the first ``size`` ones' mean, over their root mean squared distance to it."""
    flat = hidden[:, 0].double()
    flat = flat / (flat**2).sum(1, keepdim=True).sqrt()
    flat = flat - flat[:size].mean(0)
    return flat / (flat[:size] ** 2).sum(1).mean().sqrt()


def contrasts(options: int, share: float = 0.0) -> Tensor:
    """(C - 1, C): what a softmax sees of labels of which ``share`` follows an order, each line as long as it varies."""
    line = torch.linspace(-1, 1, options, dtype=torch.float64)
    covariance = (1 - share) * torch.eye(options) + share * (options - 1) * torch.outer(
        line, line
    ) / line.square().sum()
    seen = torch.eye(options).double() - 1 / options
    found = torch.linalg.svd(seen @ covariance @ seen)
    return (found.S.sqrt()[:, None] * found.Vh)[: options - 1]


class Exact:
    """Evidence and predictive probabilities of one hypothesis, integrated over its parameters on a grid."""

    def __init__(
        self,
        grid: Quadrature,
        prior: HeadPrior,
        both: Known,
        answers: Tensor,
        tau: float,
        counting: tuple[int, ...],
        share: float = 0.0,
        is_free: bool = False,
    ) -> None:
        size = len(answers)
        scores, logs = torch.zeros(1, *both.scores.shape[:2]).double(), torch.zeros(1).double()
        if both.is_labelled:
            scores, logs = self._of_labels(grid, prior, both, size, tau, share)
        absent = both.scores.isneginf()
        for score in counting:
            mean, std = (0.0, prior.free_std[score]) if is_free else (prior.weight_mean[score], prior.weight_std[score])
            weight = torch.linspace(-6 * std if is_free else 0, mean + 6 * std, 41, dtype=torch.float64)
            density = torch.log_softmax(-0.5 * ((weight - mean) / std) ** 2 + ends(weight), 0)
            values = both.scores.masked_fill(absent, 0.0)[..., score]
            scores = (scores[:, None] + weight[:, None, None] * values).flatten(0, 1)
            logs = (logs[:, None] + density).flatten()
        probs = torch.log_softmax(scores.masked_fill(absent[..., 0], -torch.inf), -1)
        likelihood = probs[:, range(size), answers].sum(-1)
        self.log_evidence = float(torch.logsumexp(logs + likelihood, 0))
        weights = torch.softmax(logs + likelihood, 0)
        self.probs = torch.einsum("g,gmc->mc", weights, probs[:, size:].exp())

    @staticmethod
    def _of_labels(
        grid: Quadrature, prior: HeadPrior, both: Known, size: int, tau: float, share: float
    ) -> tuple[Tensor, Tensor]:
        """g + b on the grid, (G, N + M, C), and its points' log weights (G,)."""
        options = both.scores.shape[1]
        columns = tau * features(both.hidden, size).mT
        shared = torch.cat([columns, prior.bias_std * torch.ones(1, len(both.hidden)).double()])
        shared = torch.linalg.svd(shared, full_matrices=False)
        shared = (shared.S[:, None] * shared.Vh)[shared.S > 1e-9]  # as few dimensions as there are
        lines = (shared[:, None, :, None] * contrasts(options, share)[:, None]).flatten(0, 1)  # (D, N + M, C)
        return grid(lines, {1: 200, 2: 60, 3: 24, 4: 20}[len(lines)])


def ends(values: Tensor) -> Tensor:
    """Logarithms of the trapezoidal rule's weights."""
    logs = torch.zeros_like(values)
    logs[[0, -1]] = math.log(0.5)
    return logs


def sampled(prior: HeadPrior, both: Known, answers: Tensor, seeds: int = 6) -> Tensor:
    """(M, C) predictive probabilities, averaged over several posteriors' samples."""
    support, asked = apart(both, len(answers))
    return torch.stack(
        [HeadPosterior(prior, support, answers, seed).probs(asked).mean(0) for seed in range(seeds)]
    ).mean(0)


def latent_of(prior: HeadPrior, support: Known) -> tuple[Any]:
    """The prior of the scores at the examples, for all hypotheses."""
    inputs = features(support.hidden, len(support.hidden))
    return (Hypotheses.of(prior, support.is_labelled).latent(inputs @ inputs.mT, support.scores),)


LARGER = known(9, 3, 4, seed=6)
LARGER_ANSWERS = torch.tensor([0, 1, 2, 2, 1, 0, 1, 1, 2])
