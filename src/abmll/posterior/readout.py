"""The readout: how confidently, and with what leaning, a task's answers follow from the model's option scores.

    p(y = c | x, phi) = softmax_c(s_c(x) / T + b_c)

s are the log-probabilities that the adapted layers give the options. The temperature T and the biases b belong to phi
as its weights do, and what tasks have in common belongs to theta:

    log T | theta ~ N(mean, std^2)        b_c | theta ~ N(0, bias_std^2)

The evidence are answers that a task's examples were given on the way, before each was learned. They come from a model
that has not read all of them yet and deserves less trust than at the end, by a factor that theta knows:

    log T on the way = log T + lag

Where a task's options do not mean the same in every example there is no bias. The weights' posterior says what the
model has learned of a task, the readout how far that may be trusted there: on a task of a kind that theta does not
know T is large, and the answers fall back on how often each was right. With so few numbers, whatever the model, the
posterior is a Gaussian at the mode (Laplace, with the generalised Gauss-Newton matrix), the prior's parameters
come by EM over tasks (empirical Bayes). All in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.posterior.numerics import bisect, normal_points

NEWTON_STEPS, EM_ROUNDS, HALVINGS = 100, 200, 30
CLOSE = 1e-9
LAG_STD, WIDEST_LAG = 1.0, 5.0
POINTS, FEWEST, ROWS = 64, 16, 16384  # places of the Gaussian to average over; fewer where samples are many
COUNT_BEFORE = 2.0  # what the default prior counts for in learning another one, in tasks


@dataclass(frozen=True)
class ReadoutPrior:
    """p(log T, b | theta), and the lag. The defaults trust the scores as they are, to a factor of 1.6 either way.

    Raises ``ValueError`` for numbers that are not finite, and for standard deviations that are not positive.
    """

    mean: float = 0.0  # of log T
    std: float = 0.5
    bias_std: float = 0.5
    lag: float = 0.0  # log T on the way, less log T at the end

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean + self.lag) and 0 < self.std < math.inf and 0 < self.bias_std < math.inf):
            raise ValueError(f"{self} is no prior")


@dataclass(frozen=True)
class Evidence:
    """Answers to examples that had not been learned from when they were given.

    ``log_probs`` (N, C), -inf where an example has fewer options; ``answers`` (N,) the right ones' indices;
    ``is_labelled``: column c stands for the same option in all of them, so that it can have a bias.
    """

    log_probs: Tensor
    answers: Tensor
    is_labelled: bool

    @property
    def num_biases(self) -> int:
        """How many options have a bias."""
        return self.log_probs.shape[-1] if self.is_labelled else 0

    def heated(self, log_factor: float) -> "Evidence":
        """The same answers, as if they had been given at a temperature that is e^``log_factor`` times as high."""
        return replace(self, log_probs=self.log_probs / math.exp(log_factor))


@dataclass(frozen=True)
class Readout:
    """q(log T, b | D): a Gaussian with ``mean`` (1 + L,) and ``covariance`` (1 + L, 1 + L), log T before L biases.

    Raises ``ValueError`` for other shapes, and for a covariance that is none.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        size = self.mean.numel()
        if self.mean.shape != (size,) or self.covariance.shape != (size, size) or not size:
            raise ValueError(
                f"a mean of shape {tuple(self.mean.shape)}, a covariance of {tuple(self.covariance.shape)}"
            )
        symmetric = torch.allclose(self.covariance, self.covariance.mT)
        whole = bool(torch.isfinite(self.mean).all()) and symmetric
        if not whole or int(torch.linalg.cholesky_ex(self.covariance).info):
            raise ValueError("the mean is not finite, or the covariance not symmetric and positive definite")

    @property
    def temperature(self) -> float:
        """T at the mean."""
        return math.exp(float(self.mean[0]))

    @torch.no_grad()
    def read(self, probs: Tensor, label: Tensor | None = None, at_mean: bool = False) -> Tensor:
        """Probabilities (S P, N, C) for those of S samples of the weights, (S, N, C), at P places of this Gaussian.

        ``label`` (N, C) is the bias that belongs to each option, -1 for none; ``at_mean``: the mean is the only place.
        """
        points = self.mean[None]  # (P, 1 + L)
        if not at_mean:
            count = min(POINTS, max(FEWEST, ROWS // len(probs)))
            points = points + normal_points(len(self.mean), count) @ torch.linalg.cholesky(self.covariance).mT
        scores = log_probs(probs)[:, None] / points[:, 0].exp()[:, None, None]  # (S, P, N, C)
        if label is not None and len(self.mean) > 1:
            biases = torch.cat([points[:, 1:], points.new_zeros(len(points), 1)], -1)  # the last: none
            scores = scores + biases[:, label]
        return torch.softmax(scores, -1).flatten(0, 1)


def log_probs(probs: Tensor) -> Tensor:
    """float64 logarithms, -inf for zero; what has no digits left counts as the smallest number that has all."""
    probs = probs.double().cpu()
    return torch.where(probs > 0, probs.clamp_min(torch.finfo(torch.float64).tiny).log(), -torch.inf)


def before_examples(prior: ReadoutPrior) -> Readout:
    """What is believed of a task of which nothing is known: the prior, without biases."""
    return infer(prior, Evidence(torch.empty(0, 1, dtype=torch.float64), torch.empty(0, dtype=torch.long), False))


def infer(prior: ReadoutPrior, evidence: Evidence) -> Readout:
    """q(log T, b | D): the mode by damped Newton steps, and the curvature there. The prior itself without examples."""
    precision = _precision(prior, evidence.num_biases)
    value = _prior_mean(prior, evidence.num_biases)
    here = _negative_log_joint(value, prior, evidence)
    for _ in range(NEWTON_STEPS):
        gradient, curvature = _derivatives(value, prior, evidence)
        step = torch.linalg.solve(curvature + precision.diag(), gradient)
        shrink = 1.0
        # Not "while it is larger": a step so long that the joint is no number has to be shortened too.
        while not (there := _negative_log_joint(value - shrink * step, prior, evidence)) <= here:
            shrink /= 2
            if shrink < 2**-HALVINGS:
                break
        if not there <= here:
            break
        value, gain, here = value - shrink * step, here - there, there
        if gain < CLOSE:
            break
    _, curvature = _derivatives(value, prior, evidence)
    return Readout(value, torch.linalg.inv(curvature + precision.diag()))


def learn_prior(tasks: Sequence[Evidence]) -> ReadoutPrior:
    """theta's part of the readout from held-out answers to several tasks: empirical Bayes, by EM.

    E: ``infer`` for every task. M: the moments of what was inferred. The default prior takes part as COUNT_BEFORE
    tasks of its kind, so that few tasks, or equal ones, give no certainty.
    """
    start = prior = ReadoutPrior()
    for _ in range(EM_ROUNDS):
        before, found = prior, [infer(prior, task) for task in tasks]
        logs = [(float(one.mean[0]), float(one.covariance[0, 0])) for one in found]
        mean = (COUNT_BEFORE * start.mean + sum(log for log, _ in logs)) / (COUNT_BEFORE + len(logs))
        spread = sum((log - mean) ** 2 + variance for log, variance in logs)
        own = (mean - start.mean) ** 2 + start.std**2
        biases = [one.mean[1:].square() + one.covariance.diagonal()[1:] for one in found if len(one.mean) > 1]
        total = sum(float(squares.mean()) for squares in biases)
        prior = ReadoutPrior(
            mean,
            math.sqrt((COUNT_BEFORE * own + spread) / (COUNT_BEFORE + len(logs))),
            math.sqrt((COUNT_BEFORE * start.bias_std**2 + total) / (COUNT_BEFORE + len(biases))),
        )
        moved = (prior.mean - before.mean, prior.std - before.std, prior.bias_std - before.bias_std)
        if max(map(abs, moved)) < 1e-4:
            break
    return prior


def learn_lag(tasks: Sequence[tuple[Readout, Evidence]]) -> float:
    """How far temperatures on the way lie above those of the end: the most probable log factor under N(0, LAG_STD^2).

    A pair is a task's readout at the end and what was answered on the way to it. Zero without any.
    """

    def slope(lag: float) -> float:
        """d / d lag of the negative log joint, the sum over tasks of d / d log T at log T + lag."""
        gradients = [_likelihood(_moved(one.mean, lag), evidence)[0] for one, evidence in tasks]
        return sum(float(gradient[0]) for gradient in gradients) + lag / LAG_STD**2

    return bisect(slope, -WIDEST_LAG, WIDEST_LAG, HALVINGS)


def _moved(value: Tensor, by: float) -> Tensor:
    """``value`` with another log T: its gradient's first entry is that of the move."""
    return torch.cat([value[:1] + by, value[1:]])


def _prior_mean(prior: ReadoutPrior, num_biases: int) -> Tensor:
    return torch.tensor([prior.mean, *[0.0] * num_biases], dtype=torch.float64)


def _precision(prior: ReadoutPrior, num_biases: int) -> Tensor:
    return torch.tensor([prior.std**-2, *[prior.bias_std**-2] * num_biases], dtype=torch.float64)


def _scores(value: Tensor, evidence: Evidence) -> Tensor:
    # No option stays none at every temperature, an infinite one among them.
    scores = (evidence.log_probs / value[0].exp()).masked_fill(evidence.log_probs.isneginf(), -torch.inf)
    return scores + value[1:] if evidence.num_biases else scores


def _negative_log_joint(value: Tensor, prior: ReadoutPrior, evidence: Evidence) -> float:
    """-log p(D | log T, b) - log p(log T, b | theta), up to a constant."""
    chosen = torch.log_softmax(_scores(value, evidence), -1).gather(-1, evidence.answers[:, None])
    centred = value - _prior_mean(prior, evidence.num_biases)
    return float(-chosen.sum() + 0.5 * (_precision(prior, evidence.num_biases) * centred.square()).sum())


def _derivatives(value: Tensor, prior: ReadoutPrior, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Of the negative log joint the gradient (D,), of the negative log-likelihood the Gauss-Newton matrix (D, D)."""
    gradient, curvature = _likelihood(value, evidence)
    centred = value - _prior_mean(prior, evidence.num_biases)
    return gradient + _precision(prior, evidence.num_biases) * centred, curvature


def _likelihood(value: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Of the negative log-likelihood the gradient (D,) and the Gauss-Newton matrix (D, D)."""
    scores = _scores(value, evidence)
    probs = torch.softmax(scores, -1)
    finite = evidence.log_probs.masked_fill(evidence.log_probs.isneginf(), 0.0)
    by_log = -finite / value[0].exp()  # d scores / d log T
    options = torch.eye(evidence.num_biases, dtype=torch.float64).expand(len(probs), -1, -1)
    jacobian = torch.cat([by_log[..., None], options], -1) if evidence.num_biases else by_log[..., None]  # (N, C, D)
    wrong = probs - torch.nn.functional.one_hot(evidence.answers, probs.shape[-1])
    gradient = (wrong[..., None] * jacobian).sum((0, 1))
    pushed = (probs[..., None] * jacobian).sum(1)  # (N, D)
    curvature = torch.einsum("ncd,nc,nce->de", jacobian, probs, jacobian) - pushed.mT @ pushed
    return gradient, curvature
