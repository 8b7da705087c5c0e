"""The calibration: how confidently, and with what leaning, a task's answers follow from the model's option scores.

    p(y = c | x, phi) = softmax_c(w s_c(x) + b_c)

s are the log-probabilities that the adapted layers give the options. The inverse temperature w and the biases b belong
to phi as its weights do, and what tasks have in common belongs to theta:

    w | theta ~ N(mean, std^2), w > 0, with probability 1 - UNKNOWN, else w = 0        b_c | theta ~ N(0, bias_std^2)

mean, std and bias_std are learned of tasks that theta was trained on. A task to come may be of a kind that theta knows
nothing of. There the scores say nothing, and the answers fall back on how often each was right. Before any evidence
neither is the likelier. Scores never speak against themselves: w is not negative.

The evidence are answers that a task's examples were given on the way, before each was learned. q(w, b | D) weighs two
Bayesian logistic regressions (``logistic.py``) by how probable they make these answers: one of the biases alone, and
one of w and the biases, cut at w = 0. Where a task's options do not mean the same in every example there is no bias.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import pad

from abmll.posterior.logistic import Choices, Gaussian, regress
from abmll.posterior.numerics import normal_points

UNKNOWN = 0.5
EM_ROUNDS, EM_CLOSE = 200, 1e-4
POINTS, FEWEST, ROWS = 64, 16, 16384  # places that stand for the posterior; fewer are read where samples are many
COUNT_BEFORE = 2.0  # what the default prior counts for in learning another one, in tasks
LEAST = 1e-12  # of a share of probability


@dataclass(frozen=True)
class CalibrationPrior:
    """p(w, b | theta) of a task that theta knows. The defaults trust the scores as they are, give or take a half.

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
        """How many options have a bias."""
        return self.log_probs.shape[-1] if self.is_labelled else 0


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
        """(1 + L,): w and the biases at the mean."""
        return self.points.mean(0)

    @property
    def inverse_temperature(self) -> float:
        """w at the mean."""
        return float(self.mean[0])

    @torch.no_grad()
    def read(self, probs: Tensor, label: Tensor | None = None, at_mean: bool = False) -> Tensor:
        """Probabilities (S P, N, C) for those of S samples of the weights, (S, N, C), at P of the points.

        ``label`` (N, C) is the bias that belongs to each option, -1 for none; ``at_mean``: the mean is the only place.
        """
        points = self.mean[None] if at_mean else self.points[: max(FEWEST, ROWS // len(probs))]
        logs = log_probs(probs)[:, None]  # (S, 1, N, C)
        absent = logs.isneginf()
        scores = points[:, 0][:, None, None] * logs.masked_fill(absent, 0.0)  # (S, P, N, C)
        if label is not None and points.shape[-1] > 1:
            biases = torch.cat([points[:, 1:], points.new_zeros(len(points), 1)], -1)  # the last: none
            scores = scores + biases[:, label]
        return torch.softmax(scores.masked_fill(absent, -torch.inf), -1).flatten(0, 1)


def log_probs(probs: Tensor) -> Tensor:
    """float64 logarithms, -inf for zero; what has no digits left counts as the smallest number that has all."""
    probs = probs.double().cpu()
    return torch.where(probs > 0, probs.clamp_min(torch.finfo(torch.float64).tiny).log(), -torch.inf)


def before_examples(prior: CalibrationPrior) -> Calibration:
    """What is believed of a task of which nothing is known: the prior, without biases."""
    return infer(prior, Evidence(torch.empty(0, 1, dtype=torch.float64), torch.empty(0, dtype=torch.long), False))


def infer(prior: CalibrationPrior, evidence: Evidence) -> Calibration:
    """q(w, b | D); the prior itself without examples."""
    silent, speaking = _biases_alone(prior, evidence), _all(prior, evidence)
    above = _above_zero(float(speaking.mean[0]), float(speaking.covariance[0, 0].sqrt()))
    log_odds = speaking.log_evidence + math.log(above / _above_zero(prior.mean, prior.std)) - silent.log_evidence
    if speaking.mean[0] < 0:  # then no w > 0 makes the answers more probable than 0 does, whatever the Gaussian's tail
        log_odds = min(log_odds, 0.0)
    unknown = float(torch.sigmoid(torch.tensor(math.log(UNKNOWN / (1 - UNKNOWN)) - log_odds)))
    normal = normal_points(1 + evidence.num_biases, POINTS)
    place = torch.special.ndtr(normal[:, 0])  # the first part of the unit interval is for w = 0, the rest for w > 0
    among_known = ((place - unknown) / max(1 - unknown, LEAST)).clamp_min(0.0)
    cut = torch.special.ndtri((1 - above * (1 - among_known)).clamp(LEAST, 1 - LEAST))
    known = _at(speaking, torch.cat([cut[:, None], normal[:, 1:]], -1))
    known[:, 0].clamp_(min=0.0)  # what rounding, or the bound on the quantile, left below zero
    return Calibration(torch.where((place < unknown)[:, None], pad(_at(silent, normal[:, 1:]), (1, 0)), known))


def learn_prior(tasks: Sequence[Evidence]) -> CalibrationPrior:
    """theta's part of the calibration from held-out answers to several tasks that it knows: empirical Bayes, by EM.

    E: the Gaussian of w and b for every task. M: the moments of what was inferred. The default prior takes part as
    COUNT_BEFORE tasks of its kind, so that few tasks, or equal ones, give no certainty.
    """
    start = prior = CalibrationPrior()
    for _ in range(EM_ROUNDS):
        before, found = prior, [_all(prior, task) for task in tasks]
        slopes = [(float(one.mean[0]), float(one.covariance[0, 0])) for one in found]
        mean = (COUNT_BEFORE * start.mean + sum(slope for slope, _ in slopes)) / (COUNT_BEFORE + len(slopes))
        mean = max(mean, 0.0)
        spread = sum((slope - mean) ** 2 + variance for slope, variance in slopes)
        own = (mean - start.mean) ** 2 + start.std**2
        biases = [one.mean[1:].square() + one.covariance.diagonal()[1:] for one in found if len(one.mean) > 1]
        total = sum(float(squares.mean()) for squares in biases)
        prior = CalibrationPrior(
            mean,
            math.sqrt((COUNT_BEFORE * own + spread) / (COUNT_BEFORE + len(slopes))),
            math.sqrt((COUNT_BEFORE * start.bias_std**2 + total) / (COUNT_BEFORE + len(biases))),
        )
        moved = (prior.mean - before.mean, prior.std - before.std, prior.bias_std - before.bias_std)
        if max(map(abs, moved)) < EM_CLOSE:
            break
    return prior


def _above_zero(mean: float, std: float) -> float:
    """How much of a Gaussian lies above zero."""
    return max(NormalDist().cdf(mean / std), LEAST)


def _all(prior: CalibrationPrior, evidence: Evidence) -> Gaussian:
    """q(w, b | D) of a task that theta knows, not cut."""
    offset, scores, options = _columns(evidence)
    size = evidence.num_biases
    mean = torch.tensor([prior.mean, *[0.0] * size], dtype=torch.float64)
    std = torch.tensor([prior.std, *[prior.bias_std] * size], dtype=torch.float64)
    return regress(Choices(offset, torch.cat([scores[..., None], options], -1), evidence.answers), mean, std)


def _biases_alone(prior: CalibrationPrior, evidence: Evidence) -> Gaussian:
    """q(b | D, w = 0) of a task that theta does not know."""
    offset, _, options = _columns(evidence)
    zeros = torch.zeros(evidence.num_biases, dtype=torch.float64)
    return regress(Choices(offset, options, evidence.answers), zeros, zeros + prior.bias_std)


def _columns(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
    """Of the regressions: the offset (N, C) that keeps absent options out, the scores (N, C), the options (N, C, L)."""
    absent = evidence.log_probs.isneginf()
    offset = torch.zeros_like(evidence.log_probs).masked_fill(absent, -torch.inf)
    options = torch.eye(evidence.log_probs.shape[-1], evidence.num_biases, dtype=torch.float64)
    return offset, evidence.log_probs.masked_fill(absent, 0.0), options.expand(len(offset), -1, -1)


def _at(belief: Gaussian, normal: Tensor) -> Tensor:
    """The Gaussian's values (P, D) at places of a standard one; the first depends on the first of them alone."""
    return belief.mean + normal @ torch.linalg.cholesky(belief.covariance).mT
