"""Calibration of one task's probabilities: a posterior over its inverse temperature w and its options' biases b.

    p(y = c | x, phi) = softmax_c(w s_c(x) + b_c)

s are the log-probabilities that the adapted model gives the options. w and b belong to the task as its adapter does;
their prior is learned from the tasks that theta was trained on (empirical Bayes):

    w ~ N(mean, std^2), w > 0, with probability 1 - P_ZERO, else w = 0        b_c ~ N(0, bias_std^2)

w = 0 is a task unlike all of those, whose scores say nothing: its probabilities follow from how often each option was
right. Before any evidence the two cases are equally likely. w is never negative.

The evidence is what a task's examples were answered before each of them was learned from (prequential). q(w, b | D)
mixes two Bayesian logistic regressions (``logistic.py``) by their marginal likelihoods: one of the biases alone, and
one of w and the biases, cut at w = 0. Where the options do not mean the same in every example there are no biases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import pad

from abmll.posterior.logistic import Choices, Gaussian, moments, regress
from abmll.posterior.numerics import normal_points

P_ZERO = 0.5  # prior probability of w = 0
EM_ROUNDS, EM_CLOSE = 200, 1e-4
POINTS, MIN_POINTS = 64, 16  # that stand for the posterior; and how few of them, where there are many weight samples,
MAX_ROWS = 16384  # keep points times samples below this
DEFAULT_COUNT = 2.0  # how many tasks the default prior counts as when a prior is learned
LEAST = 1e-12  # of a probability


@dataclass(frozen=True)
class CalibrationPrior:
    """p(w, b) where w > 0. The default takes the scores as they are, give or take a half.

    Raises ``ValueError`` for numbers that are not finite, for a negative mean, and for standard deviations that are not
    positive.
    """

    mean: float = 1.0  # of w
    std: float = 0.5
    bias_std: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.mean < math.inf and 0 < self.std < math.inf and 0 < self.bias_std < math.inf):
            raise ValueError(f"{self} is no prior")


@dataclass(frozen=True)
class Evidence:
    """N answered examples of one task: log-probabilities of their options, and which was right.

    ``log_probs`` is (N, C) in float64, -inf where an example has no such option. With ``is_labelled`` options have
    biases, and column c is the option that bias c belongs to.
    """

    log_probs: Tensor
    answers: Tensor  # (N,), int64
    is_labelled: bool

    @property
    def num_biases(self) -> int:
        """L: how many options have a bias."""
        return self.log_probs.shape[-1] if self.is_labelled else 0

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, of which ``of`` makes it again."""
        named = {"log_probs": self.log_probs, "answers": self.answers}
        return named | {"is_labelled": torch.tensor(self.is_labelled)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Evidence":
        """What these ``tensors`` are of."""
        return cls(tensors["log_probs"], tensors["answers"], bool(tensors["is_labelled"]))


@dataclass(frozen=True)
class Calibration:
    """q(w, b | D), as ``points`` (P, 1 + L) that are equally likely: w before the biases of L options.

    Any first few of them stand for the same. Raises ``ValueError`` for another shape, numbers that are not finite, and
    a negative w.
    """

    points: Tensor

    def __post_init__(self) -> None:
        if self.points.dim() != 2 or not self.points.numel():
            raise ValueError(f"points of shape {tuple(self.points.shape)}")
        if not bool(torch.isfinite(self.points).all()) or float(self.points[:, 0].min()) < 0:
            raise ValueError("a point is not finite, or its inverse temperature negative")

    @property
    def mean(self) -> Tensor:
        """(1 + L,): the posterior mean of w and the biases."""
        return self.points.mean(0)

    @property
    def inverse_temperature(self) -> float:
        """The posterior mean of w."""
        return float(self.mean[0])

    @torch.no_grad()
    def read(self, probs: Tensor, label: Tensor | None = None, at_mean: bool = False) -> Tensor:
        """Calibrated probabilities (S P, N, C) from those of S weight samples, (S, N, C), at each of P points.

        ``label`` (N, C) is the bias that belongs to each option, -1 for none; ``at_mean``: the mean is the only point.
        """
        points = self.mean[None] if at_mean else self.points[: max(MIN_POINTS, MAX_ROWS // len(probs))]
        logs = log_probs(probs)[:, None]  # (S, 1, N, C)
        absent = logs.isneginf()
        scores = points[:, 0][:, None, None] * logs.masked_fill(absent, 0.0)  # (S, P, N, C)
        if label is not None and points.shape[-1] > 1:
            biases = torch.cat([points[:, 1:], points.new_zeros(len(points), 1)], -1)  # the last: none
            scores = scores + biases[:, label]
        return torch.softmax(scores.masked_fill(absent, -torch.inf), -1).flatten(0, 1)


def log_probs(probs: Tensor) -> Tensor:
    """float64 logarithms on the CPU, -inf for zero; a subnormal number counts as the smallest normal one."""
    probs = probs.double().cpu()
    return torch.where(probs > 0, probs.clamp_min(torch.finfo(torch.float64).tiny).log(), -torch.inf)


def before_examples(prior: CalibrationPrior) -> Calibration:
    """The calibration of a task without any examples: the prior, without biases."""
    return infer(prior, Evidence(torch.empty(0, 1, dtype=torch.float64), torch.empty(0, dtype=torch.long), False))


def infer(prior: CalibrationPrior, evidence: Evidence) -> Calibration:
    """q(w, b | D); the prior itself without examples."""
    biases, full = _fit(prior, evidence, with_scores=False), _fit(prior, evidence)
    above = _mass_above_zero(float(full.mean[0]), float(full.covariance[0, 0].sqrt()))
    log_odds = full.log_evidence + math.log(above / _mass_above_zero(prior.mean, prior.std)) - biases.log_evidence
    if full.mean[0] < 0:  # then no w > 0 makes the answers more probable than 0 does, whatever the Gaussian's tail
        log_odds = min(log_odds, 0.0)
    zero = float(torch.sigmoid(torch.tensor(math.log(P_ZERO / (1 - P_ZERO)) - log_odds)))  # P(w = 0 | D)
    normal = normal_points(1 + evidence.num_biases, POINTS)
    # The first coordinate draws w by its distribution function: up to ``zero`` it is 0, from there on positive.
    uniform = torch.special.ndtr(normal[:, 0])
    quantile = ((uniform - zero) / max(1 - zero, LEAST)).clamp_min(0.0)
    truncated = torch.special.ndtri((1 - above * (1 - quantile)).clamp(LEAST, 1 - LEAST))
    positive = _transformed(full, torch.cat([truncated[:, None], normal[:, 1:]], -1))
    positive[:, 0].clamp_(min=0.0)  # what rounding, or the bound on the quantile, left below zero
    without_w = pad(_transformed(biases, normal[:, 1:]), (1, 0))
    return Calibration(torch.where((uniform < zero)[:, None], without_w, positive))


def learn_prior(tasks: Sequence[Evidence]) -> CalibrationPrior:
    """The prior of w and b from held-out answers to several training tasks: empirical Bayes, by EM.

    The E step has the posterior's own moments; with modes in their place all three came out up to 20 % too low.
    """
    prior = CalibrationPrior()
    for _ in range(EM_ROUNDS):
        before, prior = prior, _maximised([moments(*_regression(prior, task)) for task in tasks])
        if max(abs(new - old) for new, old in zip(astuple(prior), astuple(before), strict=True)) < EM_CLOSE:
            break
    return prior


def _maximised(found: Sequence[tuple[Tensor, Tensor]]) -> CalibrationPrior:
    """The prior of the tasks' E[v] and E[v^2], v = (w, b) (M step).

    The default prior takes part as DEFAULT_COUNT tasks, so that few tasks, or equal ones, give no certainty.
    """
    default, count = CalibrationPrior(), DEFAULT_COUNT + len(found)
    slopes = [(float(first[0]), float(second[0])) for first, second in found]
    mean = max((DEFAULT_COUNT * default.mean + sum(slope for slope, _ in slopes)) / count, 0.0)
    spread = sum(square - 2 * mean * slope + mean**2 for slope, square in slopes)
    own = (mean - default.mean) ** 2 + default.std**2
    biases = [float(second[1:].mean()) for _, second in found if len(second) > 1]
    return CalibrationPrior(
        mean,
        math.sqrt((DEFAULT_COUNT * own + spread) / count),
        math.sqrt((DEFAULT_COUNT * default.bias_std**2 + sum(biases)) / (DEFAULT_COUNT + len(biases))),
    )


def _mass_above_zero(mean: float, std: float) -> float:
    return max(NormalDist().cdf(mean / std), LEAST)


def _fit(prior: CalibrationPrior, evidence: Evidence, with_scores: bool = True) -> Gaussian:
    """q(w, b | D) by regression on scores and options, not cut at w = 0; q(b | D, w = 0) on the options alone."""
    return regress(*_regression(prior, evidence, with_scores))


def _regression(
    prior: CalibrationPrior, evidence: Evidence, with_scores: bool = True
) -> tuple[Choices, Tensor, Tensor]:
    """The choices, and the prior's means and standard deviations, of w (where ``with_scores``) and the biases."""
    absent, size = evidence.log_probs.isneginf(), evidence.num_biases
    offset = torch.zeros_like(evidence.log_probs).masked_fill(absent, -torch.inf)  # keeps absent options out
    features = torch.eye(absent.shape[-1], size, dtype=torch.float64).expand(len(absent), -1, -1)  # (N, C, L)
    means, stds = [0.0] * size, [prior.bias_std] * size
    if with_scores:
        features = torch.cat([evidence.log_probs.masked_fill(absent, 0.0)[..., None], features], -1)
        means, stds = [prior.mean, *means], [prior.std, *stds]
    mean, std = torch.tensor([means, stds], dtype=torch.float64)
    return Choices(offset, features, evidence.answers), mean, std


def _transformed(gaussian: Gaussian, normal: Tensor) -> Tensor:
    """Points (P, D) of a standard normal as points of ``gaussian``; each first number depends on the first alone."""
    return gaussian.mean + normal @ torch.linalg.cholesky(gaussian.covariance).mT
