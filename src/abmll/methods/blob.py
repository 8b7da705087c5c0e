"""BLoB (Wang et al., arXiv 2406.11675): q(A) = N(M, Omega^2) by backpropagation, B a parameter, on one task's examples.

A step minimises  NLL(A ~ q, B) + w KL(q(A) || N(0, sigma_p^2)),  the likelihood summed over the batch, with flipout
noise where ``noise`` is local. As in the paper a Gaussian on A alone stands for a low-rank Gaussian on the weights, and
the KL between the two Gaussians of A for that of the weights (theorem 3.2).

Different from the published code: log Omega is learned instead of G = sqrt(Omega), from the middle of the published
start; one AdamW follows the whole loss, where the code has a second optimizer, SGD, for the KL; the KL's weight is a
setting, where the code sums 2^i / (2^(M+1) - 1) over cycles of M batches. The exact lower bound has the weight
(batch size) / (number of examples).
"""

import math

import torch

from abmll.language.adapter import Adapter
from abmll.language.batch import Batch
from abmll.methods.loss import Loss
from abmll.methods.rule import PhiState, Rule


class Blob(Rule[PhiState]):
    """The rule; in its state theta is the prior and phi the posterior."""

    name = "blob"
    label = "BLoB"
    is_posterior = True
    is_trained = False
    base_method = "regular-lora"
    settings_read = ("blob_prior_std", "blob_init_log_sigma", "blob_kl_weight")
    space = "factor-a"

    def init(self, theta: Adapter) -> PhiState:
        """q(A) around theta's A with the configured standard deviation, theta's B, and the prior."""
        prior, phi = theta.clone(), theta.clone()
        for stack in prior.stacks.values():
            stack.mean_A.zero_()
            stack.scale_A.fill_(math.log(self.config.blob_prior_std))
        for stack in phi.stacks.values():
            stack.scale_A.fill_(self.config.blob_init_log_sigma)
            for tensor in (stack.mean_A, stack.mean_B, stack.scale_A):
                tensor.requires_grad_()
        return PhiState(prior, phi, self.phi_optimizer(phi))

    def inner_loss(self, state: PhiState, batch: Batch, generator: torch.Generator) -> Loss:
        """NLL at one sample of A plus the weighted KL."""
        loss = self.likelihood(state.phi, batch, self.sampled(batch, generator))
        kl = self.kl(state.phi, state.theta)
        return loss._replace(kl=kl, total=loss.nll + self.config.blob_kl_weight * kl)
