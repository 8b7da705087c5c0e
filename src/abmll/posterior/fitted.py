"""What a head has learned, as tensors: those that take long, of which all else follows at once and to the bit."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from abmll.posterior.elliptical import READS
from abmll.posterior.paths import Paths


class Fitted(NamedTuple):
    """Of a head of N examples with C options."""

    hypotheses: Tensor  # (H,) their posterior
    log_evidence: Tensor  # ()
    paths: Paths  # P samples, in rising order of their hypotheses once for each read

    def tensors(self) -> dict[str, Tensor]:
        """By their names."""
        return {"hypotheses": self.hypotheses, "log_evidence": self.log_evidence, **self.paths._asdict()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], hypotheses: int, scores: Tensor) -> "Fitted":
        """What ``tensors`` gave, of so many hypotheses and of examples with these ``scores`` (N, C, S).

        Raises ``ValueError`` where they are not that.
        """
        size, options, subsets = scores.shape
        weights = taken(tensors, "weights", (None, subsets))
        if not len(weights) or len(weights) % len(READS):
            raise ValueError(f"weights has {len(weights)} rows")
        paths = Paths(taken(tensors, "dual", (len(weights), size, options)), weights)
        shares = taken(tensors, "hypotheses", (hypotheses,))
        if bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > 1e-9:
            raise ValueError("hypotheses are no probabilities")
        return cls(shares, taken(tensors, "log_evidence", ()), paths)


def taken(tensors: Mapping[str, Tensor], name: str, shape: Sequence[int | None]) -> Tensor:
    """The tensor of that name, in float64 with finite numbers; None in ``shape`` is any size.

    Raises ``ValueError`` where it is not there or not that.
    """
    if name not in tensors:
        raise ValueError(f"lacks {name}")
    found = tensors[name]
    fits = found.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype != torch.float64:
        raise ValueError(f"{name} has another shape or type: {tuple(found.shape)}, {found.dtype}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return found


def spread(hypotheses: Tensor, chains: int) -> tuple[Tensor, Tensor]:
    """So many chains over hypotheses in proportion to their posterior (H,): those that have any, and each chain's."""
    share = (torch.arange(chains, dtype=torch.float64) + 0.5) / chains
    index = torch.searchsorted(hypotheses.cumsum(0), share).clamp(max=len(hypotheses) - 1)
    used, index = index.unique(return_inverse=True)
    return used, index
