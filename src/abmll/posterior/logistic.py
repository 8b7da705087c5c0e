"""Bayesian logistic regression on choices: the Gaussian at the mode and its evidence (Laplace), and exact moments.

    p(y_n = c | v) = softmax_c(offset_nc + features_nc . v)        v ~ N(mean, diag(std^2))

The joint density is log-concave in v: there is one mode, Newton's steps find it, and Gauss-Newton's matrix is the
Hessian. With so few numbers as a task has examples, all in float64.

A posterior of few answers is skewed, its mode nearer to zero than its mean. Its moments are those of weighted points:
half of them from Laplace's Gaussian, half from the prior, so that no weight exceeds twice the likelihood's maximum over
the evidence (defensive importance sampling, Hesterberg, "Weighted average importance sampling", Technometrics 1995).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.posterior.numerics import normal_points

NEWTON_STEPS, HALVINGS = 100, 30
CLOSE = 1e-9
DRAWS = 512  # from Laplace's Gaussian, and as many from the prior


@dataclass(frozen=True)
class Choices:
    """What was chosen among C options: ``offset`` (N, C), -inf where there is no option, ``features`` (N, C, D)."""

    offset: Tensor
    features: Tensor
    answers: Tensor  # (N,), int64


@dataclass(frozen=True)
class Gaussian:
    """q(v), v (D,), and the logarithm of the answers' probability under the prior."""

    mean: Tensor
    covariance: Tensor
    log_evidence: float


def regress(choices: Choices, mean: Tensor, std: Tensor) -> Gaussian:
    """Laplace's q(v | answers) and log p(answers): log p(answers, v*) + log N(v*; 0, H^-1)^-1 at the mode v*."""
    value = mean
    here = _energy(value, choices, mean, std)
    for _ in range(NEWTON_STEPS):
        gradient, hessian = _derivatives(value, choices, mean, std)
        step = torch.linalg.solve(hessian, gradient)
        shrink = 1.0
        # Not "while it is larger": a step so long that the energy is no number has to be shortened too.
        while not (there := _energy(value - shrink * step, choices, mean, std)) <= here:
            shrink /= 2
            if shrink < 2**-HALVINGS:
                break
        if not there <= here:
            break
        value, gain, here = value - shrink * step, here - there, there
        if gain < CLOSE:
            break
    _, hessian = _derivatives(value, choices, mean, std)
    log_evidence = -here - float(std.log().sum()) - 0.5 * float(torch.logdet(hessian))
    return Gaussian(value, torch.linalg.inv(hessian), log_evidence)


def moments(choices: Choices, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """E[v | answers] and E[v^2 | answers], each (D,); the same for every call."""
    laplace = regress(choices, mean, std)
    root, normal = torch.linalg.cholesky(laplace.covariance), normal_points(len(mean), DRAWS)
    points = torch.cat([laplace.mean + normal @ root.mT, mean + normal * std])
    spread = torch.linalg.solve_triangular(root, (points - laplace.mean).mT, upper=False)
    log_laplace = -0.5 * spread.square().sum(0) - root.diagonal().log().sum()
    log_prior = -0.5 * ((points - mean) / std).square().sum(-1) - std.log().sum()
    scores = choices.offset[..., None] + choices.features @ points.mT  # (N, C, P)
    chosen = choices.answers[:, None, None].expand(-1, 1, len(points))
    log_likelihood = torch.log_softmax(scores, 1).gather(1, chosen).sum((0, 1))
    weights = torch.softmax(log_likelihood + log_prior - torch.logaddexp(log_laplace, log_prior), 0)
    return weights @ points, weights @ points.square()


def _scores(value: Tensor, choices: Choices) -> Tensor:
    return choices.offset + choices.features @ value


def _energy(value: Tensor, choices: Choices, mean: Tensor, std: Tensor) -> float:
    """-log p(answers, v), but for the prior's normalisation."""
    chosen = torch.log_softmax(_scores(value, choices), -1).gather(-1, choices.answers[:, None])
    return float(-chosen.sum() + 0.5 * ((value - mean) / std).square().sum())


def _derivatives(value: Tensor, choices: Choices, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (D,) and Hessian (D, D) of the energy."""
    probs, features = torch.softmax(_scores(value, choices), -1), choices.features
    wrong = probs - torch.nn.functional.one_hot(choices.answers, probs.shape[-1])
    pushed = (probs[..., None] * features).sum(1)  # (N, D)
    hessian = torch.einsum("ncd,nc,nce->de", features, probs, features) - pushed.mT @ pushed
    gradient = (wrong[..., None] * features).sum((0, 1)) + (value - mean) / std.square()
    return gradient, hessian + std.pow(-2).diag()
