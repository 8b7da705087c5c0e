"""What a head can believe of a task before its examples: the hypotheses, and their prior, which is part of theta.

    f(x, c) = w . s_c(x) + b_c + g_c(x)    w_s ~ N(mean_s, std_s^2), w_s >= 0    b_c ~ N(0, bias_std^2)
                                           g_c ~ GP(0, tau^2 <h(x), h(x')>)

A hypothesis says which of the scores s_c(x) count and how large tau is; tau = 0 without scores is the answers'
frequencies alone. Where the options are not the same in every example there is neither b nor g: an option has no label
to learn about. There the last hypothesis is that all scores count and may speak against an option: w_s ~ N(0,
free_std_s^2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.posterior.latent import Latent
from abmll.posterior.mode import Mode
from abmll.posterior.numerics import log_both_above
from abmll.posterior.ordinal import Order

# Which scores count: none, per token, summed, summed less what it is without the question, and that with another.
SUBSETS = (
    *((False, False, False), (True, False, False), (False, True, False)),
    *((False, False, True), (True, False, True), (False, True, True)),
)
OF_LABELS = 2  # scores: the third differs from the second by a number for each label, which b can learn
SHARES = (0.0, 0.8)  # of the variance that follow the labels' order: 0 among them, as few tasks have what it promises


@dataclass(frozen=True)
class HeadPrior:
    """theta's part of the head. T values of tau; S = 3 scores of an option, 2 in version 0.2.

    The defaults were chosen on training and validation tasks (docs/log.md, 2026-11-28 and 2026-11-30).

    Args:
        weight_mean, weight_std: (S,) of w, where its score counts, before it is cut at zero.
        bias_std: of b.
        residual: share of the standard deviation of g + b, given the examples, with which a question is answered. Below
            1 since what is left of it lies in directions that no example has, of which tasks make less use.
        taus: (T,) standard deviations of g at an example as far from the others' mean as they are on average.
        labelled: (3, T) log prior weights of the hypotheses, where every example has the same options: of the first two
            scores none, one or the other counts.
        open: likewise where they differ, of the subsets of all scores, and last that they are free: 7, or without that
            6, or 3 of two scores, in heads that were saved before.
        free_std: (3,) of w where the scores are free.
        depths: the features: hidden states behind these shares of the decoder blocks.
    """

    weight_mean: tuple[float, ...] = (1.0, 0.3, 0.3)
    weight_std: tuple[float, ...] = (0.5, 0.3, 0.3)
    bias_std: float = 1.0
    residual: float = 0.5
    taus: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)
    labelled: tuple[tuple[float, ...], ...] = (
        (-2.0, 0.0, 0.0, 0.0, 0.0),
        (-2.0, 0.0, 0.0, 0.0, 0.0),
        (-3.5, -1.5, -1.5, -1.5, -1.5),
    )
    open: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # that none counts has a third of the whole
    free_std: tuple[float, ...] = (1.0, 0.4, 0.4)
    depths: tuple[float, ...] = (0.3333, 0.9333)

    def __post_init__(self) -> None:
        numbers = [*self.open, *(value for row in self.labelled for value in row)]
        scales = [*self.weight_mean, *self.weight_std, *self.free_std, self.bias_std, self.residual, *self.depths]
        sizes = (len(self.weight_mean), len(self.weight_std), len(self.labelled), len(self.open))
        fits = sizes in ((2, 2, 3, 3), (3, 3, 3, 6), (3, 3, 3, 7)) and len(self.free_std) == 3
        fits = fits and all(len(row) == len(self.taus) for row in self.labelled)
        is_valid = all(map(math.isfinite, numbers)) and all(0 < scale < math.inf for scale in scales)
        are_some = bool(self.taus and self.depths) and all(0 <= tau < math.inf for tau in self.taus)
        if not (fits and is_valid and are_some and max(self.depths) <= 1):
            raise ValueError(f"{self} is no prior")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "HeadPrior":
        """What JSON says of it. Raises ``TypeError`` or ``ValueError`` where it is no prior."""
        values = {name: _tuples(value) for name, value in dict(document).items()}
        return cls(**values)

    @property
    def num_scores(self) -> int:
        """Of an option."""
        return len(self.weight_mean)

    def blocks(self, number: int) -> tuple[int, ...]:
        """The depths as numbers of decoder blocks, of ``number`` that the model has."""
        return tuple(dict.fromkeys(max(1, round(depth * number)) for depth in self.depths))


def _tuples(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else float(value)


class Known(NamedTuple):
    """What is read of N examples with at most C options; with ``is_labelled`` column c is the same option in all."""

    hidden: Tensor  # (N, K, d) features
    scores: Tensor  # (N, C, S) of the options, or more than are used; -inf where there is none
    is_labelled: bool
    is_ordered: bool = False  # the columns are labels from the lowest to the highest, or the other way round


def centred(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, C, S) less their mean over an example's options, 0 where there is none; and where that is, (N, C)."""
    absent = scores[..., 0].isneginf()
    present = scores.double().masked_fill(absent[..., None], 0.0)
    values = present - present.sum(1, keepdim=True) / (~absent).sum(1)[:, None, None]
    return values.masked_fill(absent[..., None], 0.0), absent


class Hypotheses(NamedTuple):
    """H of them, in the order shares (of an order), subsets, taus."""

    counts: Tensor  # (H, S) 1 where a score counts
    taus: Tensor  # (H,)
    log_weights: Tensor  # (H,)
    bias_std: float | Tensor
    residual: float | Tensor
    mean: Tensor  # (S,)
    std: Tensor  # (S,)
    is_free: Tensor  # (H,) whether w may be negative
    free_std: Tensor  # (S,) of w where it may
    order: Order | None = None  # of the labels

    @classmethod
    def of(cls, prior: HeadPrior, is_labelled: bool) -> "Hypotheses":
        """Those of a task."""
        taus, scores = (prior.taus, OF_LABELS) if is_labelled else ((0.0,), prior.num_scores)
        weights = prior.labelled if is_labelled else tuple((weight,) for weight in prior.open)
        subsets = [row[:scores] for row in SUBSETS if not any(row[scores:])]
        num_cut = len(subsets) * len(taus)
        subsets += [(True,) * scores] * (len(weights) - len(subsets))
        return cls(
            torch.tensor(subsets, dtype=torch.float64).repeat_interleave(len(taus), 0),
            torch.tensor(taus, dtype=torch.float64).repeat(len(subsets)),
            torch.log_softmax(torch.tensor(weights, dtype=torch.float64).flatten(), 0),
            prior.bias_std if is_labelled else 0.0,
            prior.residual,
            torch.tensor(prior.weight_mean[:scores], dtype=torch.float64),
            torch.tensor(prior.weight_std[:scores], dtype=torch.float64),
            torch.arange(len(subsets) * len(taus)) >= num_cut,
            torch.tensor(prior.free_std[:scores], dtype=torch.float64),
        )

    @classmethod
    def of_task(cls, prior: HeadPrior, known: Known) -> "Hypotheses":
        """Those that make a difference for what is known."""
        hypotheses, options = cls.of(prior, known.is_labelled), known.scores.shape[1]
        scores = hypotheses.used(known.scores)
        if known.is_labelled and not bool((scores.isfinite() & (scores != 0)).any()):
            hypotheses = hypotheses.unscored()
        if known.is_labelled and known.is_ordered and options > 2:  # of two labels an order says nothing
            hypotheses = hypotheses.ordered(options)
        return hypotheses

    def pick(self, index: Tensor) -> "Hypotheses":
        """The hypotheses at ``index``, one a row."""
        order = None if self.order is None else self.order.pick(index)
        names = ("counts", "taus", "log_weights", "is_free")
        return self._replace(order=order, **{name: getattr(self, name)[index] for name in names})

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """(H, S) twice: mean and standard deviation of w, before it is cut at zero where it is not free."""
        free = self.is_free[:, None]
        return torch.where(free, 0.0, self.mean), torch.where(free, self.free_std, self.std)

    @property
    def cut(self) -> Tensor:
        """(H, S): 1 where a score counts and may not speak against an option."""
        return self.counts * ~self.is_free[:, None]

    @property
    def lowest(self) -> Tensor:
        """(H, S): the least that w may be, less its mean and in units of its standard deviation."""
        mean, std = self.weights
        return torch.where(self.cut > 0, -mean / std, -torch.inf)

    def unscored(self) -> "Hypotheses":
        """One for each tau, for examples whose scores say nothing: which of them count is then all the same."""
        number = int((self.counts.sum(-1) == 0).sum())
        weights = self.log_weights.view(-1, number).logsumexp(0)
        return self.pick(torch.arange(number))._replace(log_weights=weights)

    def ordered(self, options: int) -> "Hypotheses":
        """Each of them once for every share of the variance that may follow the labels' order, equally likely."""
        number, shares = len(self.taus), torch.tensor(SHARES, dtype=torch.float64)
        every = self.pick(torch.arange(number).repeat(len(shares)))
        order = Order.of(shares.repeat_interleave(number), options)
        return every._replace(order=order, log_weights=every.log_weights - math.log(len(shares)))

    def log_joint(self, latent: Latent, mode: Mode) -> Tensor:
        """(H,): log p(answers, hypothesis), by Laplace's approximation of all weights, cut at w = 0 or free."""
        (mean, scale), cut = self.weights, self.cut
        covariance, prior_mean = torch.linalg.inv(mode.small), mean / scale  # in units of the prior's deviation
        std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        means = (latent.onto(mode.dual) + prior_mean) / std
        above = torch.special.log_ndtr(means)
        change = ((above - torch.special.log_ndtr(prior_mean)) * cut).sum(-1)
        are_two = cut.sum(-1) > 1
        if bool(are_two.any()):  # that count, and are not independent any more
            pair = cut.argsort(-1, descending=True)[:, :2]
            one, other = pair.unbind(-1)
            rows = torch.arange(len(pair))
            correlation = covariance[rows, one, other] / std.gather(-1, pair).prod(-1)
            both = log_both_above(means[rows, one], means[rows, other], correlation)
            change = change + torch.where(are_two, both - above.gather(-1, pair).sum(-1), 0.0)
        return mode.log_evidence + change + self.log_weights

    def latent(self, inner: Tensor, scores: Tensor) -> Latent:
        """The prior of f where the features' inner products are ``inner`` (N, N)."""
        offset, design = self.of_scores(scores)
        return Latent(offset, self.kernel(inner), design, self.order)

    def kernel(self, inner: Tensor) -> Tensor:
        """Of g + b, for one label: (H, N, M) of inner products (N, M)."""
        return self.taus.square()[:, None, None] * inner + self.bias_std**2

    def used(self, scores: Tensor) -> Tensor:
        """The first S of the scores (N, C, ...)."""
        return scores[..., : self.counts.shape[-1]]

    def of_scores(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The prior's mean of f (H, N, C), and what its weights multiply, (H, N, C, S)."""
        values, absent = centred(self.used(scores))
        mean, std = self.weights
        offset = torch.einsum("ncs,hs->hnc", values, self.counts * mean)
        return offset.masked_fill(absent, -torch.inf), values * (self.counts * std)[:, None, None, :]
