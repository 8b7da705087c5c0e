"""The scores of a Bayesian classifier, Gaussian a priori: their posterior's mode, evidence and samples (Laplace).

    f(x, c) = w . s_c(x) + b_c + g_c(x)                p(y | x, w, b, g) = softmax_c f(x, c)
    w_s ~ N(mean_s, std_s^2)    b_c ~ N(0, bias_std^2)    g_c ~ GP(0, tau^2 <h(x), h(x')>)

Everything in f is Gaussian a priori. Over N examples and C options its covariance is the kernel of g and b, one N x N
matrix that all options share, plus a product of rank S for the scores: ``Latent``. Where labels have an order the
kernel is multiplied by their covariance (``ordinal``). Newton's steps, the evidence and
samples use this form (Rasmussen and Williams 2006, section 3.5, with Woodbury's identity for the scores), so that a
task costs O(C N^3), not O(C^3 N^3). All in float64; leading dimensions are hypotheses, solved at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.ordinal import Inner, Order

NEWTON_STEPS, HALVINGS, CLOSE = 60, 12, 1e-9
JITTER = 1e-8  # times the kernel's mean diagonal


class Latent(NamedTuple):
    """The prior of f for H hypotheses: N(offset, kernel (x) R + design design^T), R = I where there is no order."""

    offset: Tensor  # (H, N, C), -inf where there is no option
    kernel: Tensor  # (H, N, N)
    design: Tensor  # (H, N, C, S) scores times their weights' standard deviations, 0 where there is no option
    order: Order | None = None  # of the labels

    def times(self, dual: Tensor) -> Tensor:
        """The prior covariance times ``dual`` (H, N, C)."""
        values = self.kernel @ dual
        return (values if self.order is None else self.order.spread(values)) + self.along(self.onto(dual))

    def mixed(self, values: Tensor) -> Tensor:
        """g + b (H, N, C) of ``values``, of which every label has its own."""
        return values if self.order is None else self.order.mixed(values)

    def onto(self, dual: Tensor) -> Tensor:
        """design^T dual: (H, S)."""
        return torch.einsum("hncs,hnc->hs", self.design, dual)

    def along(self, weights: Tensor) -> Tensor:
        """design weights: (H, N, C) of (H, S)."""
        return torch.einsum("hncs,hs->hnc", self.design, weights)

    def scores(self, values: Tensor, weights: Tensor) -> Tensor:
        """f for ``values`` (H, N, C), see ``mixed``, and ``weights`` (H, S) in units of their standard deviations."""
        return self.offset + self.mixed(values) + self.along(weights)

    def pick(self, index: Tensor | slice) -> "Latent":
        """The hypotheses at ``index``, one a row."""
        order = None if self.order is None else self.order.pick(index)
        return Latent(self.offset[index], self.kernel[index], self.design[index], order)


class Mode(NamedTuple):
    """Where the posterior of f is highest, f = offset + covariance dual, and the evidence there."""

    dual: Tensor  # (H, N, C)
    log_evidence: Tensor  # (H,) log p(answers), by Laplace's approximation
    solver: "Solver"


class Solver:
    """(I + W K)^-1 for the curvature W of the likelihood at the probabilities ``probs`` (H, N, C) and the prior K."""

    def __init__(self, latent: Latent, probs: Tensor) -> None:
        self.latent, self.probs = latent, probs
        root = square_root(probs.mT)  # (H, C, N)
        size, order = latent.kernel.shape[-1], latent.order
        self.kernel = latent.kernel if order is None else order.own * latent.kernel  # of every label for itself
        inner = root[..., :, None] * self.kernel[:, None] * root[..., None, :]
        factor = torch.linalg.cholesky(inner + torch.eye(size, dtype=inner.dtype))
        self.blocks = root[..., :, None] * torch.cholesky_inverse(factor) * root[..., None, :]  # (H, C, N, N)
        self.total = torch.linalg.cholesky(self.blocks.sum(1))
        self.inner = None if order is None else Inner(order, latent.kernel, self.blocks, self.total)
        pushed = latent.design - (probs[..., None] * latent.design).sum(2, keepdim=True)
        columns = (probs[..., None] * pushed).movedim(-1, 1)  # W design: (H, S, N, C)
        self.columns = torch.stack([self._block(one) for one in columns.unbind(1)], -1)
        self.small = torch.eye(self.columns.shape[-1], dtype=inner.dtype) + torch.einsum(
            "hncs,hnct->hst", latent.design, self.columns
        )
        self.log_det = (
            2 * factor.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
            + 2 * self.total.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            + torch.linalg.slogdet(self.small).logabsdet
        )
        if self.inner is not None:
            self.log_det = self.log_det + self.inner.log_det

    def __call__(self, value: Tensor, at: slice = slice(None)) -> Tensor:
        """(I + W K)^-1 ``value``, both (H, N, C); of the hypotheses ``at``, of which one serves any number of rows."""
        first, latent = self._block(value, at), self.latent.pick(at)
        inner = torch.linalg.solve(self.small[at], latent.onto(first)[..., None])[..., 0]
        return first - torch.einsum("hncs,hs->hnc", self.columns[at], inner)

    def rows(self, value: Tensor, index: Tensor) -> Tensor:
        """The same of values (P, N, C), each of the hypothesis that ``index`` (P,) names, in rising order."""
        numbers, counts = index.unique_consecutive(return_counts=True)
        parts = zip(numbers.tolist(), value.split(counts.tolist()), strict=True)
        return torch.cat([self(part, slice(number, number + 1)) for number, part in parts])

    def _block(self, value: Tensor, at: slice = slice(None)) -> Tensor:
        """The same as a call for g + b alone, without the scores."""
        moved, back = self._bent(self.kernel[at] @ value, at)
        solved = value - moved + back
        if self.inner is None:
            return solved
        moved, back = self._bent(self.inner(solved, at), at)
        return solved - moved + back

    def _bent(self, value: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """The terms of (I + W K)^-1 W ``value`` for ``kernel`` alone: it is the first less the second."""
        moved = torch.einsum("hcij,hjc->hic", self.blocks[at], value)
        shared = torch.cholesky_solve(moved.sum(-1, keepdim=True), self.total[at])
        return moved, torch.einsum("hcij,hj->hic", self.blocks[at], shared[..., 0])


def log_likelihood(scores: Tensor, answers: Tensor) -> Tensor:
    """log p(answers | f) of (..., N, C) scores, summed over the examples; ``answers`` is (N,)."""
    logs = torch.log_softmax(scores, -1)
    return logs.gather(-1, answers[:, None].expand(*logs.shape[:-1], 1)).sum((-1, -2))


def find_mode(latent: Latent, answers: Tensor) -> Mode:
    """Laplace's approximation: Newton's steps in the dual, halved where they lead uphill."""
    hot = torch.nn.functional.one_hot(answers, latent.offset.shape[-1]).to(latent.offset.dtype)
    dual = torch.zeros_like(hot).expand(latent.offset.shape)
    moved, here = latent.offset, _objective(latent, answers, dual, latent.offset)
    for _ in range(NEWTON_STEPS):
        probs = torch.softmax(moved, -1)
        step = _newton(latent, Solver(latent, probs), hot, dual) - dual
        along, share, before = latent.times(step), torch.ones_like(here), here
        for _ in range(HALVINGS):
            by = share[:, None, None]
            there = _objective(latent, answers, dual + by * step, moved + by * along)
            better = there >= before - CLOSE
            here = torch.where(better, there, before)
            share = torch.where(better, share, share / 2)
            if bool(better.all()):
                break
        share = torch.where(here == before, 0.0, share)[:, None, None]
        dual, moved = dual + share * step, moved + share * along
        if float((here - before).abs().max()) < CLOSE:
            break
    solver = Solver(latent, torch.softmax(moved, -1))
    return Mode(dual, here - 0.5 * solver.log_det, solver)


def at_mode(latent: Latent, answers: Tensor) -> Mode:
    """``find_mode`` with the gradient of everything with respect to ``latent``.

    At the mode Newton's step depends on where it starts in second order only, so that the derivative of one step from
    there is that of the mode (the implicit function theorem).
    """
    with torch.no_grad():
        dual = find_mode(latent, answers).dual
    hot = torch.nn.functional.one_hot(answers, latent.offset.shape[-1]).to(latent.offset.dtype)
    dual = _newton(latent, Solver(latent, torch.softmax(latent.offset + latent.times(dual), -1)), hot, dual)
    scores = latent.offset + latent.times(dual)
    solver = Solver(latent, torch.softmax(scores, -1))
    return Mode(dual, _objective(latent, answers, dual, scores) - 0.5 * solver.log_det, solver)


def _newton(latent: Latent, solver: Solver, hot: Tensor, dual: Tensor) -> Tensor:
    """The dual of Newton's next point."""
    return solver(curved(solver.probs, latent.times(dual)) + hot - solver.probs)


def _objective(latent: Latent, answers: Tensor, dual: Tensor, scores: Tensor) -> Tensor:
    """log p(answers | f) + log p(f) without its constant: (H,)."""
    return log_likelihood(scores, answers) - 0.5 * (dual * latent.times(dual)).sum((-1, -2))


class Paths(NamedTuple):
    """Samples of f, one in each of P rows: g + b = kernel dual R^1/2 on the examples, and the scores' weights."""

    dual: Tensor  # (P, N, C)
    weights: Tensor  # (P, S) in units of their prior's standard deviation, from its mean


def sample(latent: Latent, mode: Mode, index: Tensor, generator: torch.Generator) -> Paths:
    """One sample of Laplace's Gaussian for each row of ``index`` (P,): its hypothesis, in rising order.

    Matheron's rule: a sample of the prior, corrected by what a noisy observation of it, whose precision is the
    likelihood's curvature at the mode, says of it.
    """
    rows, probs, factor = latent.pick(index), mode.solver.probs[index], root(latent.kernel)[index]
    normal, noise = (torch.randn(probs.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(len(index), latent.design.shape[-1], generator=generator, dtype=torch.float64)
    prior = rows.mixed(factor @ normal) + rows.along(weights)
    noise = square_root(probs) * noise
    noise = noise - probs * noise.sum(-1, keepdim=True)  # of covariance diag(p) - p p^T
    dual = mode.dual[index] + mode.solver.rows(noise - curved(probs, prior), index)
    return Paths(
        rows.mixed(dual) + torch.linalg.solve_triangular(factor.mT, normal, upper=True), rows.onto(dual) + weights
    )


def square_root(probs: Tensor) -> Tensor:
    """The square root, whose gradient is finite at zero too, the probability of an option that is absent."""
    tiny = torch.finfo(probs.dtype).tiny
    return torch.where(probs > tiny, probs.clamp_min(tiny).sqrt(), 0.0)


def curved(probs: Tensor, value: Tensor) -> Tensor:
    """W ``value``: the likelihood's curvature, diag(p) - p p^T for every example."""
    return probs * (value - (probs * value).sum(-1, keepdim=True))


def root(kernel: Tensor) -> Tensor:
    """Cholesky's factor, with a little on the diagonal, as copies of an example make a kernel singular."""
    scale = kernel.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.linalg.cholesky(
        kernel + JITTER * scale.clamp(min=1.0) * torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    )
