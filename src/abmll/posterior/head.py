"""The head: a Bayesian classifier of one task on frozen features and on the model's own scores of the options.

    f(x, c) = w . s_c(x) + b_c + g_c(x)                p(y = c | x, w, b, g) = softmax_c f(x, c)

w, b and g are part of phi: they belong to one task. Their prior, and what can be believed of them (``hypotheses``), is
part of theta. Hypotheses are weighed by their evidence (Laplace), and the posterior of each is sampled, in proportion
(``elliptical``).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.elliptical import READS, refine
from abmll.posterior.fitted import Fitted, spread
from abmll.posterior.hypotheses import HeadPrior, Hypotheses, Known
from abmll.posterior.latent import Latent, root
from abmll.posterior.mode import find_mode
from abmll.posterior.ordinal import Order
from abmll.posterior.paths import Paths, Rows, sample
from abmll.posterior.threads import one_thread

CHAINS, FEWEST_CHAINS = 128, 32
MOST_NUMBERS = 5_000_000  # in all chains, which have one for each example and option
LEAST_VARIANCE = 1e-12
LEAST_SPREAD = 1e-6  # of features of length one: less is what rounding leaves of equal ones


class Metric:
    """Features as the kernel compares them: of length one, less the known ones' mean, in units of their spread."""

    def __init__(self, hidden: Tensor) -> None:
        flat = self._flat(hidden)
        self.mean = flat.mean(0)
        spread = (flat - self.mean).square().sum(-1).mean().sqrt()
        self.scale = spread if bool(spread > LEAST_SPREAD) else torch.ones_like(spread)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, K d) in float64 of (N, K, d)."""
        return (self._flat(hidden) - self.mean) / self.scale

    @staticmethod
    def _flat(hidden: Tensor) -> Tensor:
        hidden = hidden.double()
        return (hidden / hidden.norm(dim=-1, keepdim=True).clamp(min=1e-12)).flatten(1)


class HeadPosterior:
    """q(w, b, g | D) of one task: ``chains`` over all hypotheses, in proportion to their posterior.

    None is ``CHAINS``, or fewer where they would be long. ``considered`` are the hypotheses, None: those of the prior.
    With what ``fitted()`` of an equal one gave nothing is learned again; raises ``ValueError`` where it is not that.
    """

    @one_thread()
    def __init__(
        self,
        prior: HeadPrior,
        known: Known,
        answers: Tensor,
        seed: int = 0,
        *,
        considered: Hypotheses | None = None,
        chains: int | None = None,
        fitted: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.seed = seed
        self.metric = Metric(known.hidden)
        self.inputs = self.metric(known.hidden)
        self.considered = considered or Hypotheses.of_task(prior, known)
        inner = self.inputs @ self.inputs.T
        if fitted is None:
            self.learned = _learn(self.considered, self.considered.latent(inner, known.scores), answers, seed, chains)
        else:
            self.learned = Fitted.of(fitted, len(self.considered.taus), self.considered.used(known.scores))
        self.hypotheses, log_evidence, self.paths = self.learned
        self.log_evidence = float(log_evidence)
        used, index = spread(self.hypotheses, len(self.paths.weights) // len(READS))
        self.used = self.considered.pick(used)
        self.index = index.repeat(len(READS))  # (P,) each path's hypothesis among those that are used
        self.factor = root(self.used.kernel(inner))
        self.samples = len(self.index)

    def fitted(self) -> dict[str, Tensor]:
        """What took long to learn."""
        return self.learned.tensors()

    @one_thread()
    def probs(self, asked: Known) -> Tensor:
        """(P, M, C): the options' probabilities of M questions under each sample."""
        where = Where.of(self.used, self.factor, self.inputs, self.metric(asked.hidden), asked.scores)
        generator = torch.Generator().manual_seed(self.seed + 1)
        normal = torch.randn(self.samples, 1, asked.scores.shape[1], generator=generator, dtype=torch.float64)
        return torch.softmax(where.scores(self.paths, self.index, normal), -1)


def _learn(hypotheses: Hypotheses, latent: Latent, answers: Tensor, seed: int, chains: int | None) -> Fitted:
    """The hypotheses' posterior, and chains that start from samples at the modes."""
    mode = find_mode(latent, answers)
    joint = hypotheses.log_joint(latent, mode)
    posterior = torch.softmax(joint, 0)
    chains = chains or max(FEWEST_CHAINS, min(CHAINS, MOST_NUMBERS // max(latent.offset[0].numel(), 1)))
    used, index = spread(posterior, chains)
    hypotheses, latent, mode = hypotheses.pick(used), latent.pick(used), mode.pick(used)
    generator = torch.Generator().manual_seed(seed)
    start = sample(latent, mode, index, generator)
    refined = refine(latent, index, answers, start, hypotheses.lowest[index], generator)
    return Fitted(posterior, torch.logsumexp(joint, 0), refined)


class Where(NamedTuple):
    """How f at M questions depends on f at the N examples, for H hypotheses."""

    offset: Tensor  # (H, M, C)
    design: Tensor  # (H, M, C, S)
    cross: Tensor  # (H, M, N) covariance of g + b
    left: Tensor  # (H, M, 1) standard deviation of g + b, given the examples, that counts
    has_kernel: bool  # else there is neither g nor b: options differ, and so may their number
    order: Order | None

    @classmethod
    def of(cls, hypotheses: Hypotheses, factor: Tensor, inputs: Tensor, asked: Tensor, scores: Tensor) -> "Where":
        """Of the examples' ``inputs`` (N, D), the root (H, N, N) of their kernel, the questions' inputs (M, D) and the
        ``scores`` of their options."""
        prior = hypotheses.taus.square()[:, None] * asked.square().sum(-1) + hypotheses.bias_std**2
        cross = hypotheses.kernel(asked @ inputs.T)
        explained = torch.linalg.solve_triangular(factor, cross.mT, upper=False).square().sum(1)
        left = hypotheses.residual * (prior - explained).clamp(min=LEAST_VARIANCE).sqrt()[..., None]
        return cls(*hypotheses.of_scores(scores), cross, left, bool(prior.any()), hypotheses.order)

    def scores(self, paths: Paths, index: Tensor, normal: Tensor) -> Tensor:
        """(P, M, C): f along each path, of the hypothesis that ``index`` (P,) names.

        What the examples leave open of g + b is drawn by ``normal`` numbers.
        """
        rows = Rows(index)
        known = self.offset.index_select(0, index) + rows.along(self.design, paths.weights)
        if not self.has_kernel:
            return known
        values = rows.times(self.cross, paths.dual) + self.left[index] * normal
        return known + rows.mixed(self.order, values)
