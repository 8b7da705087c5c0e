"""Laplace-LoRA (Yang et al., arXiv 2308.13111): plain LoRA steps to a mode, then a Gaussian from the curvature there.

The posterior over the entries of A and B is N(mode, (diag(GGN) + prior precision)^-1), the generalised Gauss-Newton
matrix that of the options' scores over all adaptation examples, by laplace-torch (Daxberger et al., arXiv 2106.14806).
The prior is N(0, 1 / precision), one precision for all entries, which maximises the Laplace marginal likelihood unless
it is given: ten examples determine so few of a hundred thousand entries that the maximum may lie at a very broad prior.
The paper has Kronecker factors where this has a diagonal. It predicts to first order (``predictive = "linearized"``);
samples leave the neighbourhood where the curvature holds.

The curvature costs a forward pass for each example and a backward pass for each of its options.
"""

import torch

from abmll.common.errors import ConfigError
from abmll.language.adapter import Adapter
from abmll.methods.lora import StructuredLora
from abmll.methods.support import Support


class Laplace(StructuredLora):
    """Plain LoRA steps, whose end is the mode."""

    name = "laplace"
    label = "Laplace-LoRA"
    is_posterior = True
    is_trained = False
    base_method = "regular-lora"
    settings_read = ("laplace_prior_precision",)
    space = "factor"
    needs_options = True

    def num_batches(self, support: Support) -> int:
        """The steps, then every example, the first of them once more for the number of options."""
        return support.steps + len(support.encoded) + 1

    def adapt(self, theta: Adapter, support: Support) -> tuple[Adapter, ...]:
        """The mode, with the standard deviations in its scale factors."""
        try:
            from abmll.methods.curvature import diagonal_laplace
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"method: laplace needs laplace-torch ({error}); install it with: pip install 'abmll[laplace]'"
            ) from error
        phi = self.learn(self.init(theta), support)
        posterior = diagonal_laplace(phi, support, self.config.laplace_prior_precision)
        write_variances(phi, posterior.posterior_variance)
        return (phi,)


@torch.no_grad()
def write_variances(phi: Adapter, variances: torch.Tensor) -> None:
    """Put the variances of all mean factors, flat and in the order of ``mean_tensors``, into the scale factors."""
    parts = iter(variances.split([tensor.numel() for tensor in phi.mean_tensors()]))
    for stack in phi.stacks.values():
        stack.scale_A.copy_(0.5 * next(parts).log().view_as(stack.scale_A))
        stack.scale_B.copy_(0.5 * next(parts).log().view_as(stack.scale_B))
