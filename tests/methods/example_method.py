"""Minibatch proximal updates (Zhou et al., "Efficient Meta Learning via Minibatch Proximal Update", NeurIPS 2019).

Reptile with a leash: phi is learned against  NLL(phi) + WEIGHT / 2 |phi - theta|^2,  so that it stays near theta.
"""

import torch

from abmll.language.batch import Batch
from abmll.methods.loss import Loss
from abmll.methods.reptile import Reptile, ReptileState

WEIGHT = 0.1  # a setting of its own would be a field of ``ContinueConfig`` or ``LearningConfig``


class Proximal(Reptile):
    """Everything but the inner loss is Reptile's."""

    name = "proximal"
    label = "Proximal"

    def inner_loss(self, state: ReptileState, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at phi's mean plus the penalty, which is reported in the place of the divergence."""
        loss = super().inner_loss(state, batch, generator)
        pairs = zip(state.phi.mean_tensors(), state.theta.mean_tensors(), strict=True)
        penalty = torch.stack([(phi - theta).square().sum() for phi, theta in pairs]).sum()
        return loss._replace(kl=penalty, total=loss.nll + WEIGHT / 2 * penalty)
