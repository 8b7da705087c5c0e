"""Labels with an order: what is learned of one label says something of its neighbours.

    cov(g_c(x), g_c'(x')) = R_cc' k(x, x')        R = (1 - lambda) I + lambda t t^T

t are the labels' ranks less their mean, of length sqrt(C - 1): a share lambda of what the features say rises or falls
along the order. A softmax sees as much variance as without one, and of two labels the same for every lambda. R = t t^T
is the adjacent-category logit model (Agresti 2010, Analysis of Ordinal Categorical Data, section 4.1), R = I is a head
that knows of no order.

Without an order every label has its own N x N block in Newton's method. t t^T joins the blocks, but through h(x) t_c
alone, so that Woodbury's identity needs a single N x N matrix more (``Inner``), not one of N C x N C.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Order(NamedTuple):
    """R of H hypotheses."""

    share: Tensor  # (H,) lambda
    ranks: Tensor  # (C,) t

    @classmethod
    def of(cls, share: Tensor, options: int) -> "Order":
        """Those of labels in their order, from the lowest to the highest or the other way round."""
        places = torch.arange(options, dtype=torch.float64)
        centred = places - places.mean()
        return cls(share, centred * math.sqrt(options - 1) / centred.norm())

    @property
    def own(self) -> Tensor:
        """(H, 1, 1): 1 - lambda, the share of what every label has for itself."""
        return (1 - self.share)[:, None, None]

    def spread(self, value: Tensor) -> Tensor:
        """``value`` R, both (H, N, C)."""
        return self.own * value + self._along(self.share, value)

    def mixed(self, value: Tensor) -> Tensor:
        """``value`` R^1/2, both (H, N, C): labels of covariance R from independent ones, or back where R^-1 was."""
        own, length = (1 - self.share).sqrt(), self.ranks.square().sum()
        both = (1 - self.share + self.share * length).sqrt()
        return own[:, None, None] * value + self._along((both - own) / length, value)

    def _along(self, by: Tensor, value: Tensor) -> Tensor:
        return (by[:, None, None] * (value @ self.ranks)[..., None]) * self.ranks

    def pick(self, index: Tensor | slice) -> "Order":
        """The hypotheses at ``index``, one a row."""
        return self._replace(share=self.share[index])


class Inner:
    """What lambda k t t^T adds to (I + W K)^-1, where K is without it.

    With G = (I + W K)^-1 W and Q = t^T G t, it is G t M t^T (I + W K)^-1, M = (I + lambda k Q)^-1 lambda k.
    """

    def __init__(self, order: Order, kernel: Tensor, total: Tensor, once: Tensor, twice: Tensor) -> None:
        """For ``kernel`` k, the factor ``total`` of T = sum_c E_c, and E's sums by t and by t^2: (H, N, N) each.

        G = E - E 1 T^-1 1^T E for the blocks E_c (Rasmussen and Williams 2006, section 3.5).
        """
        self.ranks = order.ranks
        across = torch.linalg.solve_triangular(total, once, upper=False)
        shared = order.share[:, None, None] * kernel
        inner = shared @ (twice - across.mT @ across) + torch.eye(kernel.shape[-1], dtype=kernel.dtype)
        lower_upper, pivots = torch.linalg.lu_factor(inner)
        self.matrix = torch.linalg.lu_solve(lower_upper, pivots, shared)  # M
        self.log_det = lower_upper.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def __call__(self, solved: Tensor, at: slice) -> Tensor:
        """t M t^T ``solved``, both (H, N, C), of the hypotheses ``at``."""
        return (self.matrix[at] @ (solved @ self.ranks)[..., None]) * self.ranks
