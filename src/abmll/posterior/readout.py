"""The readout: how confidently, and with what leaning, a task's answers follow from the model's option scores.

    p(y = c | x, phi) = softmax_c(w s_c(x) + b_c)

s are the log-probabilities that the adapted layers give the options. The inverse temperature w and the biases b belong
to phi as its weights do, and what tasks have in common belongs to theta:

    w | theta ~ N(mean, std^2)        b_c | theta ~ N(0, bias_std^2)

This is Bayesian logistic regression of a task's answers on its scores. The evidence are answers that a task's examples
were given on the way, before each was learned. Where a task's options do not mean the same in every example there is no
bias. The weights' posterior says what the model has learned of a task, the readout how far that may be trusted there.

Theta's part is learned of tasks that theta was trained on. A task to come may be of a kind that it knows nothing of,
where w is zero and the answers fall back on how often each was right. Neither is the likelier before any evidence, and
the prior of a task to come has the moments of their even mixture (``half_known``).

The posterior is the Gaussian at the mode (Laplace's; the joint is concave in w and b, so that there is one mode, and
Gauss-Newton's matrix is the Hessian), the prior's parameters come by EM over tasks (empirical Bayes). All in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.posterior.numerics import normal_points

NEWTON_STEPS, EM_ROUNDS, HALVINGS = 100, 200, 30
CLOSE = 1e-9
POINTS, FEWEST, ROWS = 64, 16, 16384  # places of the Gaussian to average over; fewer where samples are many
COUNT_BEFORE = 2.0  # what the default prior counts for in learning another one, in tasks


@dataclass(frozen=True)
class ReadoutPrior:
    """p(w, b | theta). The defaults trust the scores as they are, give or take a half.

    Raises ``ValueError`` for numbers that are not finite, and for standard deviations that are not positive.
    """

    mean: float = 1.0  # of w
    std: float = 0.5
    bias_std: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf and 0 < self.bias_std < math.inf):
            raise ValueError(f"{self} is no prior")

    def half_known(self) -> "ReadoutPrior":
        """Of a task that is as likely one of these as one whose scores say nothing: N(mean, std^2) or N(0, std^2).

        The Gaussian with the mean and variance of that even mixture.
        """
        return replace(self, mean=self.mean / 2, std=math.hypot(self.std, self.mean / 2))


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


@dataclass(frozen=True)
class Readout:
    """q(w, b | D): a Gaussian with ``mean`` (1 + L,) and ``covariance`` (1 + L, 1 + L), w before L biases.

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
    def inverse_temperature(self) -> float:
        """w at the mean."""
        return float(self.mean[0])

    @torch.no_grad()
    def read(self, probs: Tensor, label: Tensor | None = None, at_mean: bool = False) -> Tensor:
        """Probabilities (S P, N, C) for those of S samples of the weights, (S, N, C), at P places of this Gaussian.

        ``label`` (N, C) is the bias that belongs to each option, -1 for none; ``at_mean``: the mean is the only place.
        """
        points = self.mean[None]  # (P, 1 + L)
        if not at_mean:
            count = min(POINTS, max(FEWEST, ROWS // len(probs)))
            points = points + normal_points(len(self.mean), count) @ torch.linalg.cholesky(self.covariance).mT
        logs = log_probs(probs)[:, None]  # (S, 1, N, C)
        absent = logs.isneginf()
        scores = points[:, 0][:, None, None] * logs.masked_fill(absent, 0.0)  # (S, P, N, C)
        if label is not None and len(self.mean) > 1:
            biases = torch.cat([points[:, 1:], points.new_zeros(len(points), 1)], -1)  # the last: none
            scores = scores + biases[:, label]
        return torch.softmax(scores.masked_fill(absent, -torch.inf), -1).flatten(0, 1)


def log_probs(probs: Tensor) -> Tensor:
    """float64 logarithms, -inf for zero; what has no digits left counts as the smallest number that has all."""
    probs = probs.double().cpu()
    return torch.where(probs > 0, probs.clamp_min(torch.finfo(torch.float64).tiny).log(), -torch.inf)


def before_examples(prior: ReadoutPrior) -> Readout:
    """What is believed of a task of which nothing is known: the prior, without biases."""
    return infer(prior, Evidence(torch.empty(0, 1, dtype=torch.float64), torch.empty(0, dtype=torch.long), False))


def infer(prior: ReadoutPrior, evidence: Evidence) -> Readout:
    """q(w, b | D): the mode by damped Newton steps, and the curvature there. The prior itself without examples."""
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
        slopes = [(float(one.mean[0]), float(one.covariance[0, 0])) for one in found]
        mean = (COUNT_BEFORE * start.mean + sum(slope for slope, _ in slopes)) / (COUNT_BEFORE + len(slopes))
        spread = sum((slope - mean) ** 2 + variance for slope, variance in slopes)
        own = (mean - start.mean) ** 2 + start.std**2
        biases = [one.mean[1:].square() + one.covariance.diagonal()[1:] for one in found if len(one.mean) > 1]
        total = sum(float(squares.mean()) for squares in biases)
        prior = ReadoutPrior(
            mean,
            math.sqrt((COUNT_BEFORE * own + spread) / (COUNT_BEFORE + len(slopes))),
            math.sqrt((COUNT_BEFORE * start.bias_std**2 + total) / (COUNT_BEFORE + len(biases))),
        )
        moved = (prior.mean - before.mean, prior.std - before.std, prior.bias_std - before.bias_std)
        if max(map(abs, moved)) < 1e-4:
            break
    return prior


def _prior_mean(prior: ReadoutPrior, num_biases: int) -> Tensor:
    return torch.tensor([prior.mean, *[0.0] * num_biases], dtype=torch.float64)


def _precision(prior: ReadoutPrior, num_biases: int) -> Tensor:
    return torch.tensor([prior.std**-2, *[prior.bias_std**-2] * num_biases], dtype=torch.float64)


def _scores(value: Tensor, evidence: Evidence) -> Tensor:
    absent = evidence.log_probs.isneginf()  # no option stays none, whatever w
    scores = value[0] * evidence.log_probs.masked_fill(absent, 0.0)
    return (scores + value[1:] if evidence.num_biases else scores).masked_fill(absent, -torch.inf)


def _negative_log_joint(value: Tensor, prior: ReadoutPrior, evidence: Evidence) -> float:
    """-log p(D | w, b) - log p(w, b | theta), up to a constant."""
    chosen = torch.log_softmax(_scores(value, evidence), -1).gather(-1, evidence.answers[:, None])
    centred = value - _prior_mean(prior, evidence.num_biases)
    return float(-chosen.sum() + 0.5 * (_precision(prior, evidence.num_biases) * centred.square()).sum())


def _derivatives(value: Tensor, prior: ReadoutPrior, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Of the negative log joint the gradient (D,), of the negative log-likelihood the Hessian (D, D)."""
    probs = torch.softmax(_scores(value, evidence), -1)
    slope = evidence.log_probs.masked_fill(evidence.log_probs.isneginf(), 0.0)  # d scores / d w
    options = torch.eye(evidence.num_biases, dtype=torch.float64).expand(len(probs), -1, -1)
    jacobian = torch.cat([slope[..., None], options], -1) if evidence.num_biases else slope[..., None]  # (N, C, D)
    wrong = probs - torch.nn.functional.one_hot(evidence.answers, probs.shape[-1])
    pushed = (probs[..., None] * jacobian).sum(1)  # (N, D)
    hessian = torch.einsum("ncd,nc,nce->de", jacobian, probs, jacobian) - pushed.mT @ pushed
    centred = value - _prior_mean(prior, evidence.num_biases)
    gradient = (wrong[..., None] * jacobian).sum((0, 1))
    return gradient + _precision(prior, evidence.num_biases) * centred, hessian
