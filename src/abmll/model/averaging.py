"""The average of several adapters' updates as one adapter, for programs that take no more than one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.language.adapter import Adapter


@torch.no_grad()
def average_update(members: Sequence[Adapter]) -> tuple[Adapter, float]:
    """The adapter of the members' rank r whose update is nearest to the average of theirs, and how far it is off.

    The average of M updates B A has rank M r at most; of it the r greatest singular values are kept (Eckart and Young).
    How far is the Frobenius norm of what is lost, over all layers, divided by that of the average: 0 if nothing is.
    Only the mean factors are averaged; the standard deviations are the first member's. One member is its own average.
    """
    if len(members) == 1:
        return members[0], 0.0
    average = members[0].clone()
    lost, whole = 0.0, 0.0
    for shape, factors in average.stacks.items():
        own = [member.stacks[shape] for member in members]
        a, b = torch.cat([one.mean_A for one in own], 1), torch.cat([one.mean_B for one in own], 2) / len(members)
        left, values, right = _thin_svd(b.double(), a.double())
        kept = factors.mean_A.shape[1]
        root = values[:, :kept].sqrt()
        factors.mean_B.copy_(left[..., :kept] * root[:, None, :])
        factors.mean_A.copy_(root[:, :, None] * right[:, :kept])
        lost += float(values[:, kept:].square().sum())
        whole += float(values.square().sum())
    return average, (lost / whole) ** 0.5 if whole else 0.0


def _thin_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of every b @ a, (L, d_out, k) @ (L, k, d_in), by way of a core of k x k."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.mT)
    vectors, values, others = torch.linalg.svd(upper @ lower.mT)
    return left @ vectors, values, others @ right.mT
