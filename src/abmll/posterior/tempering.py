"""How sure a head should be: an inverse temperature of its probabilities, learned by cross-validation.

    q(c) = sum_a p(a | D) p(c)^a / sum_c' p(c')^a          log a ~ N(0, SPREAD^2)
    p(a | D) is in proportion to p(a) prod_n (p_-n(y_n)^a / sum_c p_-n(c)^a)^WEIGHT

p are the probabilities that the head's samples have on average; p_-n are those of a head of the examples in the other
folds. The evidence of a head (``head``) trusts its own assumptions; this looks at what becomes of them. Cross-validated
temperatures are usual after the fact (Guo et al. 2017), here with a prior and averaged over, as examples are few.
WEIGHT is below 1 as held-out answers are not independent: four fifths of the examples stand behind each of them.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from abmll.common.progress import progress
from abmll.posterior.fitted import taken
from abmll.posterior.head import FEWEST_CHAINS, HeadPosterior
from abmll.posterior.hypotheses import OF_LABELS, HeadPrior, Hypotheses, Known
from abmll.posterior.threads import one_thread

HELD_OUT = "held_out"
FOLDS = 5
FEW_OPTIONS = 32  # of more, few chains are too noisy a mean (docs/log.md, 2026-11-29)
LEAST = 0.005  # probability of a hypothesis that the held-out heads still consider
WEIGHT, SPREAD = 0.25, 1.0  # chosen on training and validation tasks (docs/log.md, 2026-11-29)
LARGE, AT_ONCE = 10_000, 2  # of heads with so many examples times options, so many at a time: each has some gigabytes
INVERSE = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64).exp()  # (T,) values of a


class TemperedHead(HeadPosterior):
    """A head whose probabilities are tempered; for the rest see its base.

    One of options that differ is not, where its prior is of version 0.2, so that it answers as it did.

    Args:
        folds: of cross-validation; never more than there are different examples. Of less than 2 nothing is learned.

    Attributes:
        fold_of: (N,) the fold of each example.
        held_out: (N, C) p_-n.
        log_likelihood: (N, T) of each answer under each a.
        weights: (T,) p(a | D).
    """

    def __init__(
        self,
        prior: HeadPrior,
        known: Known,
        answers: Tensor,
        seed: int = 0,
        quiet: bool = True,
        *,
        folds: int = FOLDS,
        fitted: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(prior, known, answers, seed, fitted=fitted)
        self.likely = self.considered.pick((self.hypotheses > LEAST).nonzero()[:, 0])
        self.learned_of = prior, known, answers
        is_old = not known.is_labelled and prior.num_scores == OF_LABELS
        self.fold_of = torch.zeros_like(answers) if is_old else dealt(known, answers, folds)
        self.is_tempered = bool(self.fold_of.any())
        if self.is_tempered:
            self.held_out = self._held_out(self.fold_of, quiet) if fitted is None else _apart(fitted, known)
            self.log_likelihood = log_likelihood(self.held_out, answers)
            self.weights = weights(self.log_likelihood)

    @classmethod
    def restored(
        cls, prior: HeadPrior, known: Known, answers: Tensor, seed: int, fitted: Mapping[str, Tensor]
    ) -> "TemperedHead":
        """The head of which ``fitted()`` gave this, without learning it again.

        Raises ``ValueError`` where it is not of such a head.
        """
        return cls(prior, known, answers, seed, fitted=fitted)

    def fitted(self) -> dict[str, Tensor]:
        """What took long to learn."""
        return super().fitted() | ({HELD_OUT: self.held_out} if self.is_tempered else {})

    def _held_out(self, fold_of: Tensor, quiet: bool) -> Tensor:
        """(N, C) p_-n for these folds."""
        return held_out(*self.learned_of, self.seed, fold_of, quiet, self.likely)

    def temper(self, probs: Tensor) -> Tensor:
        """q of p (..., C)."""
        return mixed(probs, self.weights) if self.is_tempered else probs

    def cross_validated(self, folds: int | None = None, quiet: bool = True) -> Tensor:
        """(N, C): q of each example's p_-n, its temperature learned of the other folds; None are the folds at hand.

        An example's answer still has a small part in it: the heads that answer the other folds have learned it.
        """
        fold_of, apart, logs = self.fold_of, self.held_out, self.log_likelihood
        if folds is not None:
            fold_of = dealt(*self.learned_of[1:], folds)
            apart = self._held_out(fold_of, quiet)
            logs = log_likelihood(apart, self.learned_of[2])
        probs = torch.zeros_like(apart)
        for fold in fold_of.unique():
            asked = fold_of == fold
            probs[asked] = mixed(apart[asked], weights(logs[~asked]))
        return probs


def held_out(
    prior: HeadPrior, known: Known, answers: Tensor, seed: int, fold_of: Tensor, quiet: bool, considered: Hypotheses
) -> Tensor:
    """(N, C): the probabilities of each example's options by a head of the examples in the other folds.

    ``considered`` are their hypotheses.
    """
    chains = FEWEST_CHAINS if known.scores.shape[1] <= FEW_OPTIONS else None
    probs = torch.zeros(known.scores.shape[:2], dtype=torch.float64)
    folds = fold_of.unique().tolist()

    def answered(fold: int) -> Tensor:
        asked = fold_of == fold
        others = HeadPosterior(
            prior, picked(known, ~asked), answers[~asked], seed, considered=considered, chains=chains
        )
        return others.probs(picked(known, asked)).mean(0)

    # one_thread here as well: each head puts back the number of threads that it found, in whatever order they end.
    threads, bar = AT_ONCE if probs.numel() >= LARGE else 1, progress(len(folds), "cross-validating", "fold", quiet)
    with one_thread(), ThreadPoolExecutor(threads) as pool, bar:
        for fold, part in zip(folds, pool.map(answered, folds), strict=True):
            probs[fold_of == fold] = part
            bar.update()
    return probs


def picked(known: Known, index: Tensor) -> Known:
    """What is known of the examples at ``index``."""
    return known._replace(hidden=known.hidden[index], scores=known.scores[index])


def powered(probs: Tensor, inverse_temperature: float | Tensor) -> Tensor:
    """p^a / sum p^a over the last axis; zero where p is."""
    logs = inverse_temperature * probs.clamp(min=torch.finfo(torch.float64).tiny).log()
    return torch.softmax(logs.masked_fill(probs == 0, -torch.inf), -1)


def _apart(fitted: Mapping[str, Tensor], known: Known) -> Tensor:
    """p_-n as it was ``fitted``."""
    probs = taken(fitted, HELD_OUT, known.scores.shape[:2])
    if bool(((probs < 0) | (probs > 1)).any()):
        raise ValueError(f"{HELD_OUT} are no probabilities")
    return probs


def mixed(probs: Tensor, weights: Tensor) -> Tensor:
    """q of p (..., C) under the weights (T,) of the values of a."""
    shape = (-1, *(1 for _ in probs.shape))
    return (weights.view(shape) * powered(probs, INVERSE.view(shape))).sum(0)


def log_likelihood(probs: Tensor, answers: Tensor) -> Tensor:
    """(N, T): of each answer with the probabilities p_-n (N, C) under each a."""
    index = answers.expand(len(INVERSE), -1)[..., None]
    chosen = powered(probs, INVERSE[:, None, None]).gather(-1, index)[..., 0]
    return chosen.clamp(min=torch.finfo(torch.float64).tiny).log().T.contiguous()


def weights(log_likelihood: Tensor) -> Tensor:
    """(T,) p(a | D) of the log likelihoods (N, T)."""
    return torch.softmax(WEIGHT * log_likelihood.sum(0) - (INVERSE.log() / SPREAD).square() / 2, 0)


def dealt(known: Known, answers: Tensor, folds: int) -> Tensor:
    """(N,) a fold for each example: those of one answer after the other dealt out in turn, equal ones to one fold."""
    _, group = known.hidden.flatten(1).unique(dim=0, return_inverse=True)
    first = {int(place): n for n, place in reversed(list(enumerate(group)))}
    order = sorted(first, key=lambda place: (int(answers[first[place]]), first[place]))
    fold = {place: turn % folds for turn, place in enumerate(order)}
    return torch.tensor([fold[int(place)] for place in group])
