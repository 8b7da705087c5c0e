"""Gaussian LoRA adapters: the mathematics on tensors alone.

Not here: a language model, a file, or a setting but the adapter's own. Start with ``stacks`` (the tensors) and
``space`` (the interface), then ``weight`` and ``output`` (the two spaces of the paper); ``rank_one`` (closed
forms), ``any_rank`` (by tiles) and ``noise`` (sampling) do their work. ``calibration`` stands alone.

**Scale of the loss.** All terms are sums in nats, as in the paper's objective: the negative log-likelihood is summed
over the batch's scored answers (for token scoring: over their answer tokens), the KL over every weight of every
adapted layer (output space: over every unpadded token and channel of every adapted layer), and -log p(theta) likewise:

    loss(phi)   = NLL(batch; phi) + beta * KL(q(phi) || p(phi | theta))
    loss(theta) = beta * KL(q(phi) || p(phi | theta)) + (gamma / M) * -log p(theta),   M the number of training tasks

Nothing here is averaged or divided by a batch size; beta and gamma carry all the weighting.
"""

from abmll.posterior.build import build_space
from abmll.posterior.draws import Draws
from abmll.posterior.output import OutputSpace
from abmll.posterior.prior import Prior
from abmll.posterior.recorders import Record
from abmll.posterior.space import LayerUpdate, Noise, Space
from abmll.posterior.stacks import Factors
from abmll.posterior.weight import WeightSpace

__all__ = [
    "Draws",
    "Factors",
    "LayerUpdate",
    "Noise",
    "OutputSpace",
    "Prior",
    "Record",
    "Space",
    "WeightSpace",
    "build_space",
]
