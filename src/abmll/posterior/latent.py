"""The scores of a Bayesian classifier, Gaussian a priori, and what a likelihood's curvature makes of their covariance.

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

JITTER = 1e-8  # times the kernel's mean diagonal
AT_ONCE = 2**18  # numbers that are worked on together: more of them would leave the processor's cache


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
        self.latent, self.probs = latent, probs
        order = latent.order
        self.kernel = latent.kernel if order is None else order.own * latent.kernel  # of every label for itself
        number = max(1, AT_ONCE // (len(probs) * latent.kernel.shape[-1] ** 2))  # of labels
        parts = [_blocks(some, self.kernel) for some in square_root(probs.mT).split(number, 1)]
        self.blocks, log_dets = (torch.cat(several, 1) for several in zip(*parts, strict=True))  # (H, C, N, N), (H, C)
        self.total = torch.linalg.cholesky(self.blocks.sum(1))
        self.inner = None if order is None else Inner(order, latent.kernel, self.blocks, self.total)
        pushed = latent.design - (probs[..., None] * latent.design).sum(2, keepdim=True)
        columns = (probs[..., None] * pushed).movedim(-1, 1)  # W design: (H, S, N, C)
        self.columns = torch.stack([self._block(one) for one in columns.unbind(1)], -1)
        self.small = torch.eye(self.columns.shape[-1], dtype=probs.dtype) + torch.einsum(
            "hncs,hnct->hst", latent.design, self.columns
        )
        self.log_det = (
            log_dets.sum(-1)
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


def _blocks(root: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """E_c = (W_c^-1 + K)^-1, (H, C, N, N), and log det (I + W_c K), (H, C), of labels whose W_c^1/2 is ``root``."""
    inner = root[..., :, None] * kernel[:, None] * root[..., None, :]
    factor = torch.linalg.cholesky(inner + torch.eye(kernel.shape[-1], dtype=kernel.dtype))
    inverse = root[..., :, None] * torch.cholesky_inverse(factor) * root[..., None, :]
    return inverse, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def log_likelihood(scores: Tensor, answers: Tensor) -> Tensor:
    """log p(answers | f) of (..., N, C) scores, summed over the examples; ``answers`` is (N,)."""
    logs = torch.log_softmax(scores, -1)
    return logs.gather(-1, answers[:, None].expand(*logs.shape[:-1], 1)).sum((-1, -2))


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
