"""The scores of a Bayesian classifier, Gaussian a priori, and what a likelihood's curvature makes of their covariance.

    f(x, c) = w . s_c(x) + b_c + g_c(x)                p(y | x, w, b, g) = softmax_c f(x, c)
    w_s ~ N(mean_s, std_s^2)    b_c ~ N(0, bias_std^2)    g_c ~ GP(0, tau^2 <h(x), h(x')>)

Everything in f is Gaussian a priori here; that w may not be negative comes later (``hypotheses``, ``elliptical``).
Over N examples and C options the covariance of f is the kernel of g and b, one N x N matrix that all options share,
plus a product of rank S for the scores: ``Latent``. Where labels have an order the kernel is multiplied by their
covariance (``ordinal``). Newton's steps, the evidence and samples use this form (Rasmussen and Williams 2006, section
3.5, with Woodbury's identity for the scores), so that a task costs O(C N^3), not O(C^3 N^3). All in float64; leading
dimensions are hypotheses, solved at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.ordinal import Inner, Order

JITTER = 1e-8  # times the kernel's mean diagonal
CACHED_NUMBERS = 2**18  # numbers that are worked on together: more of them would leave the processor's cache


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

    @property
    def own_kernel(self) -> Tensor:
        """(H, N, N): what every label has of the kernel for itself."""
        return self.kernel if self.order is None else self.order.own * self.kernel

    def mixed(self, values: Tensor) -> Tensor:
        """g + b (H, N, C) of ``values``, of which every label has its own."""
        return values if self.order is None else self.order.mixed(values)

    def onto(self, dual: Tensor) -> Tensor:
        """design^T dual: (H, S)."""
        return (dual.flatten(1)[:, None] @ self.design.flatten(1, 2))[:, 0]

    def along(self, weights: Tensor) -> Tensor:
        """design weights: (H, N, C) of (H, S)."""
        return (self.design.flatten(1, 2) @ weights[..., None]).view(self.offset.shape)

    def scores(self, values: Tensor, weights: Tensor) -> Tensor:
        """f for ``values`` (H, N, C), see ``mixed``, and ``weights`` (H, S) in units of their standard deviations."""
        return self.offset + self.mixed(values) + self.along(weights)

    def pick(self, index: Tensor | slice) -> "Latent":
        """The hypotheses at ``index``, one a row."""
        order = None if self.order is None else self.order.pick(index)
        return Latent(self.offset[index], self.kernel[index], self.design[index], order)


class Solver:
    """(I + W K)^-1 for the curvature W of the likelihood at the probabilities ``probs`` (H, N, C) and the prior K."""

    def __init__(self, latent: Latent, probs: Tensor) -> None:
        self.latent, self.probs, self.kernel, order = latent, probs, latent.own_kernel, latent.order
        self.blocks = torch.cat([blocks for _, blocks, _ in _by_label(latent, probs)], 1)  # (H, C, N, N)
        self.total, self.inner = torch.linalg.cholesky(self.blocks.sum(1)), None
        if order is not None:
            sums = (_weighed(self.blocks, by) for by in (order.ranks, order.ranks.square()))
            self.inner = Inner(order, latent.kernel, self.total, *sums)
        columns = curved(probs[..., None], latent.design, 2).movedim(-1, 1)  # W design: (H, S, N, C)
        self.columns = torch.stack([self._block(one) for one in columns.unbind(1)], -1)
        self.small = torch.eye(self.columns.shape[-1], dtype=probs.dtype) + torch.einsum(
            "hncs,hnct->hst", latent.design, self.columns
        )

    def __call__(self, value: Tensor, at: slice = slice(None)) -> Tensor:
        """(I + W K)^-1 ``value``, both (H, N, C); of the hypotheses ``at``, of which one serves any number of rows."""
        first, latent = self._block(value, at), self.latent.pick(at)
        inner = torch.linalg.solve(self.small[at], latent.onto(first)[..., None])[..., 0]
        return first - torch.einsum("hncs,hs->hnc", self.columns[at], inner)

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


def precision(latent: Latent, probs: Tensor) -> tuple[Tensor, Tensor]:
    """log det (I + W K), (H,), and the precision of the scores' weights, (H, S, S), where probabilities are ``probs``.

    With G of kernel and order alone (``Inner``) that is I + D^T G D for the design D. All of it are sums over labels,
    so that the C blocks of N x N are only needed one after the other: for those of all hypotheses there may be no room,
    and a ``Solver``, which keeps them, is made of those that are sampled, or in training of few examples.
    """
    order, sums = latent.order, None
    for labels, blocks, log_dets in _by_label(latent, probs):
        design = latent.design[:, :, labels].movedim(2, 1)  # (H, c, N, S)
        pushed = blocks @ design
        terms = [log_dets.sum(1), blocks.sum(1), pushed.sum(1), (design.mT @ pushed).sum(1)]
        if order is not None:
            ranks = order.ranks[labels]
            terms += [_weighed(blocks, ranks), _weighed(blocks, ranks.square()), _weighed(pushed, ranks)]
        sums = terms if sums is None else [before + term for before, term in zip(sums, terms, strict=True)]
    assert sums is not None
    log_det, total, pushed, bent, *ordered = sums
    total = torch.linalg.cholesky(total)
    across = torch.linalg.solve_triangular(total, pushed, upper=False)
    small = torch.eye(bent.shape[-1], dtype=bent.dtype) + bent - across.mT @ across
    log_det = log_det + 2 * _log_diagonal(total)
    if order is not None:
        once, twice, lead = ordered
        inner = Inner(order, latent.kernel, total, once, twice)
        lead = lead - once @ torch.cholesky_solve(pushed, total)  # t^T G D
        small, log_det = small - lead.mT @ inner.matrix @ lead, log_det + inner.log_det
    return log_det + torch.linalg.slogdet(small).logabsdet, small


def _by_label(latent: Latent, probs: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Labels, some at once, their E_c = (W_c^-1 + k)^-1, (H, c, N, N), and log det (I + W_c k), (H, c).

    W_c are the probabilities of label c, k is what the kernel has for every label.
    """
    count, size, options = probs.shape
    number = max(1, CACHED_NUMBERS // (count * size * size))
    roots, kernel, one = square_root(probs.mT), latent.own_kernel, torch.eye(size, dtype=probs.dtype)
    for start in range(0, options, number):
        labels = slice(start, start + number)
        own = roots[:, labels, :, None]
        factor = torch.linalg.cholesky(own * kernel[:, None] * own.mT + one)
        yield labels, own * torch.cholesky_inverse(factor) * own.mT, 2 * _log_diagonal(factor)


def _log_diagonal(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _weighed(blocks: Tensor, by: Tensor) -> Tensor:
    """(H, i, j) of (H, c, i, j) by (c,)."""
    return torch.einsum("hcij,c->hij", blocks, by)


def log_likelihood(scores: Tensor, answers: Tensor) -> Tensor:
    """log p(answers | f) of (..., N, C) scores, summed over the examples; ``answers`` is (N,)."""
    logs = torch.log_softmax(scores, -1)
    return logs.gather(-1, answers[:, None].expand(*logs.shape[:-1], 1)).sum((-1, -2))


def square_root(probs: Tensor) -> Tensor:
    """The square root, whose gradient is finite at zero too, the probability of an option that is absent."""
    tiny = torch.finfo(probs.dtype).tiny
    return torch.where(probs > tiny, probs.clamp_min(tiny).sqrt(), 0.0)


def curved(probs: Tensor, value: Tensor, options: int = -1) -> Tensor:
    """W ``value``: the likelihood's curvature, diag(p) - p p^T for every example; ``options`` are in that dimension."""
    return probs * (value - (probs * value).sum(options, keepdim=True))


def root(kernel: Tensor) -> Tensor:
    """Cholesky's factor, with a little on the diagonal, as copies of an example make a kernel singular."""
    scale = kernel.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.linalg.cholesky(
        kernel + JITTER * scale.clamp(min=1.0) * torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    )
